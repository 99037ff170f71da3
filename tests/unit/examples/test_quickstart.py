"""The quickstart's own machinery; the commands that it runs have tests of their own."""

import fcntl
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from megatron_longpo.utils.errors import UserError
from tests.e2e.test_examples import assert_flags_are_taken
from tests.support.recorded_commands import ROOT, read_command

QUICKSTART = ROOT / "examples" / "quickstart"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import one of the quickstart's scripts as running it would."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    specification = importlib.util.spec_from_file_location(name, QUICKSTART / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, name, module)
    specification.loader.exec_module(module)
    return module


def make_stages(module: ModuleType, folder: Path, *texts: str) -> list:
    """Make a chain of stages, each of which adds a line to its own file and to a common log."""
    code = "import sys; [open(path, 'a').write(sys.argv[1] + '\\n') for path in sys.argv[2:]]"
    outputs = [folder / f"output{number}.txt" for number in range(len(texts))]
    return [
        module.Stage(path.stem, f"write {text}", ("python", "-c", code, text, str(path), str(folder / "log")), (path,))
        for path, text in zip(outputs, texts, strict=True)
    ]


def test_a_stage_runs_once_and_again_when_it_or_one_before_it_changes(tmp_path, monkeypatch, capfd):
    module = load("stages", monkeypatch)
    log = tmp_path / "log"
    first = module.run_stages(make_stages(module, tmp_path, "a", "b", "c"), tmp_path, {})
    assert log.read_text().split() == ["a", "b", "c"]
    assert "[2/3] write b\n$ python -c" in capfd.readouterr().out
    again = module.run_stages(make_stages(module, tmp_path, "a", "b", "c"), tmp_path, {})
    assert (again, log.read_text().split()) == (first, ["a", "b", "c"])
    module.run_stages(make_stages(module, tmp_path, "a", "B", "c"), tmp_path, {})
    assert log.read_text().split() == ["a", "b", "c", "B", "c"]
    assert [(tmp_path / f"output{number}.txt").read_text() for number in range(3)] == ["a\n", "B\n", "c\n"]
    (tmp_path / "output2.txt").unlink()
    module.run_stages(make_stages(module, tmp_path, "a", "B", "c"), tmp_path, {})
    assert log.read_text().split() == ["a", "b", "c", "B", "c", "c"]


def test_a_stage_that_fails_stops_the_chain_and_is_started_over_what_it_left(tmp_path, monkeypatch, capfd):
    module = load("stages", monkeypatch)
    output, switch = tmp_path / "output", tmp_path / "switch"
    code = f"import os; open({str(output)!r}, 'a').write('part '); os.path.exists({str(switch)!r}) or exit(3)"
    stages = [module.Stage("weak", "fail once", ("python", "-c", code), (output,)), *make_stages(module, tmp_path, "after")]
    with pytest.raises(UserError, match="stage 'weak' failed with exit code 3"):
        module.run_stages(stages, tmp_path, {})
    assert not (tmp_path / "log").exists()
    switch.touch()
    module.run_stages(stages, tmp_path, {})
    assert output.read_text() == "part part "
    assert (tmp_path / "log").read_text() == "after\n"


def test_a_second_process_is_refused(tmp_path, monkeypatch, capfd):
    module = load("stages", monkeypatch)
    code = f"import fcntl; fcntl.flock(open({str(tmp_path / 'lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with pytest.raises(UserError, match="stage 'other' failed"):
        module.run_stages([module.Stage("other", "lock it", ("python", "-c", code), ())], tmp_path, {})
    holder = (tmp_path / "lock").open()
    fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(UserError, match="another quickstart is running here"):
        module.run_stages([], tmp_path, {})
    holder.close()


def test_a_stage_that_makes_nothing_is_an_error(tmp_path, monkeypatch, capfd):
    module = load("stages", monkeypatch)
    stage = module.Stage("idle", "do nothing", ("python", "-c", ""), (tmp_path / "never",))
    with pytest.raises(UserError, match=r"ended without making .*never"):
        module.run_stages([stage], tmp_path, {})


def test_every_command_takes_its_flags(monkeypatch):
    stages = load("run", monkeypatch).stages()
    assert len({stage.name for stage in stages}) == len(stages) == 11
    for stage in stages:
        assert_flags_are_taken(read_command(list(stage.command)))


def test_documents_are_starts_of_topics_in_whole_paragraphs(tmp_path):
    from pydoc_data.topics import topics

    output = tmp_path / "documents.jsonl"
    subprocess.run([sys.executable, QUICKSTART / "make_documents.py", "--output", output], cwd=ROOT, check=True, timeout=60)
    documents = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(documents) == 8
    for document in documents:
        topic = topics[document["document_id"].removeprefix("python-")].strip()
        assert 6000 <= len(document["text"]) <= 7800
        assert topic.startswith(document["text"])
        assert topic[len(document["text"]) :][:2] in ("", "\n\n")


def test_the_summary_holds_what_it_promises(tmp_path, monkeypatch):
    module = load("summary", monkeypatch)
    metrics = {name: 0.5 for name, _ in module.SHOWN}
    answer = {
        "document_id": "d", "prompt_tokens": 7, "instruction": "Why?", "answer": "Because.",
        "before_from_chunk": "A\nb", "before_from_document": "C",
    }  # fmt: skip
    for name, content in (("before", metrics), ("after", {**metrics, "loss": 0.25}), ("answer", answer), ("pairs", {"x": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "trained").mkdir()
    rows = [json.dumps({"iteration": number, **metrics}) for number in (1, 2)]
    (tmp_path / "trained" / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    settings = {"iterations": 2, "learning_rate": 1e-5, "rotary_base": 1e6}
    text = module.summarize(tmp_path, {"train": 3.0, "export": 4.0}, settings)
    assert "objective                               0.5000    0.2500" in text
    assert "  trained, from the document:  Because." in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"] == {"train": 3.0, "export": 4.0, "total": 7.0}
    assert (summary["before"]["loss"], summary["after"]["loss"], summary["answer"]) == (0.5, 0.25, "Because.")
    assert summary["hf_path"] == str(tmp_path / "exported")
    assert Path(summary["plot"]).read_bytes().startswith(b"\x89PNG")
