import json
from pathlib import Path

from benchmarks.report import Result, console_table, markdown_table, page
from benchmarks.run import write_page


def row(ratio: float, **changes: object) -> Result:
    values = {
        "contest": "step", "against": "two passes", "shape": "4K", "quantity": "CPU time", "unit": "s", "ours": 1.0,
        "other": 2.0, "ratio": ratio, "target": 0.5,
    }  # fmt: skip
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_a_target_is_an_upper_or_a_lower_bound() -> None:
    assert [row(ratio).met for ratio in (0.4, 0.5, 0.6)] == [True, True, False]
    assert [row(ratio, at_most=False).met for ratio in (0.4, 0.5, 0.6)] == [False, True, True]


def test_a_result_has_the_promised_fields_and_survives_json() -> None:
    result = row(0.6, details={"wall": [1, 2]})
    values = json.loads(json.dumps(result.to_json()))
    assert values.keys() >= {"contest", "ours", "other", "ratio", "target", "met"}
    assert values["met"] is False
    assert Result.of(values) == result


def test_tables_show_a_missed_target() -> None:
    lines = markdown_table([row(0.4), row(0.6)]).splitlines()
    assert [line.count("|") for line in lines] == [len(lines[0].split("|")) - 1] * 4
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["yes", "**no**"]
    assert [line.split()[-1] for line in console_table([row(0.4), row(0.6)]).splitlines()[1:]] == ["yes", "no"]


def test_the_page_is_made_of_the_results_file(tmp_path: Path) -> None:
    rows = [row(0.4), row(0.6, contest="head")]
    (tmp_path / "results.json").write_text(json.dumps([result.to_json() for result in rows]))
    (tmp_path / "machine.json").write_text(json.dumps({"CPU": "of a test"}))
    write_page(tmp_path / "page.md", tmp_path)
    text = (tmp_path / "page.md").read_text()
    assert "1 of 2 targets are met." in text
    assert markdown_table(rows) in text
    assert "of a test" in text
    write_page(tmp_path / "page.md", tmp_path, ["growth"])
    assert "1 of 2 targets are met. Not measured yet: growth.\n" in (tmp_path / "page.md").read_text()
    assert text == page(rows, {"CPU": "of a test"}, *_notes_and_commands(text))


def _notes_and_commands(text: str) -> tuple[str, list[str]]:
    notes = text[text.index("## How the figures are taken") :]
    return notes, text.split("```bash\n")[1].split("\n```")[0].splitlines()
