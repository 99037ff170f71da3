"""The report tells what the rounds have left, whole or not, and a page shows it safely."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.evolution.config import Config, read_config
from megatron_longpo.evolution.manifest import Manifest, Record
from megatron_longpo.evolution.plan import Plan
from megatron_longpo.evolution.report import POINTS, collect, training_curves, write_report
from megatron_longpo.evolution.report_page import render_page
from megatron_longpo.evolution.report_text import duration
from megatron_longpo.evolution.runner import HASHES
from megatron_longpo.evolution.states import DONE
from megatron_longpo.evolution.status import Row
from tests.support.recorded_commands import ROOT

TEXT = """
output: {folder}/out
model: models/<b>m</b>
defaults: {{train: {{train-iters: 1}}, evaluate: {{tasks: [vt, mmlu], questions: [mine=q.jsonl]}}}}
rounds:
  - {{name: a, seq-length: 131072, rotary-base: 1e7, documents: docs}}
  - {{name: b, seq-length: 262144, documents: docs, generator: base}}
"""


@pytest.fixture
def rounds(tmp_path: Path, plan_of: Callable[[Config], Plan], monkeypatch: pytest.MonkeyPatch) -> tuple[Config, Plan]:
    monkeypatch.chdir(ROOT)
    (tmp_path / "rounds.yaml").write_text(TEXT.format(folder=tmp_path))
    config = read_config(tmp_path / "rounds.yaml")
    return config, plan_of(config)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def metrics(iterations: int, **more: Any) -> str:
    rows = [
        {"iteration": number, "loss": 3.0 / number, "rewards/margins": -1.0, "seconds": 1.0, **more}
        for number in range(1, iterations + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def fill(config: Config, plan: Plan) -> list[Row]:
    """Put down what a first round leaves; return the states of all stages."""
    out, manifest = config.output, Manifest(config.output)
    write(out / "a" / "pairs.json", {"num_pairs": 4500, "num_turns": 9000})
    write(out / "a" / "trained" / "metrics.jsonl", metrics(20))
    scores = {"before": 40.0, "after": 60.5}
    write(out / "a" / "decision.json", {"continue": True, "reasons": ["all <i>well</i>"], "long": scores, "short": None})
    for name, score in (("base", 40.0), ("a", 60.5)):
        ruler = {"lengths": {"131072": {"tasks": {}, "groups": {}, "average_13": {"score": score}}}}
        questions = {"mine": {"score": 1.0, "groups": {"<g>": {"score": 2.0}}}}
        write(
            out / "evaluation" / name / "results.json",
            {"ruler": ruler, "short": {"mmlu": {"score": 61.0}}, "questions": questions},
        )
    done = [stage for stage in plan.stages if stage.name.startswith(("base/", "a/"))]
    for stage in done:
        record = Record(
            command=stage.command, inputs={}, attempts=1, start="2026", versions={"torch": "2"}, exit_code=0, seconds=3600.0
        )
        manifest.put(stage.name, record)
    return [Row(stage.name, DONE if stage in done else "to do", "", "1") for stage in plan.stages]


class Reader(html.parser.HTMLParser):
    """Collects the text and the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_a_report_has_what_the_rounds_left(rounds: tuple[Config, Plan]) -> None:
    config, plan = rounds
    report = collect(config, plan.stages, fill(config, plan))
    first, second = report["rounds"]
    assert (first["pairs"], first["decision"]["continue"], first["seconds"]["train"]) == (4500, True, 3600.0)
    assert first["training"]["loss"][:2] == [3.0, 1.5]
    assert (second["pairs"], second["decision"], second["seconds"], second["training"]) == (None, None, {}, {})
    assert (second["generator"], second["start"]) == ("base", "a")
    assert report["scores"]["a"] == {"RULER: 131072": 60.5, "Short tasks: mmlu": 61.0, "mine: all": 1.0, "mine: <g>": 2.0}
    assert report["seconds"] == 3600.0 * len([one for one in report["stages"] if one["state"] == DONE])
    assert report["versions"] == {"torch": ["2"]}


def test_what_a_stage_that_is_not_done_has_left_is_not_reported(rounds: tuple[Config, Plan]) -> None:
    config, plan = rounds
    rows = [Row(row.name, "changed", "", "1") for row in fill(config, plan)]
    report = collect(config, plan.stages, rows)
    assert (report["rounds"][0]["pairs"], report["rounds"][0]["decision"], report["scores"]) == (None, None, {})


def test_the_page_shows_rounds_scores_training_and_stages(rounds: tuple[Config, Plan]) -> None:
    config, plan = rounds
    page = render_page(collect(config, plan.stages, fill(config, plan)))
    read = Reader(page)
    for text in (
        "131,072",
        "1e7",
        "the model's",
        "4,500",
        "40.0 to 60.5",
        "a: go on",
        "all <i>well</i>",
        "models/<b>m</b>",
        "<g>",
        "torch 2",
    ):
        assert text in read.text, text
    assert page.count("<svg") == 3 + 2, "three families of scores; losses and rewards of one training"
    assert "script" not in read.tags
    assert page == render_page(collect(config, plan.stages, fill(config, plan)))


def test_a_report_of_nothing_is_a_report(rounds: tuple[Config, Plan]) -> None:
    config, plan = rounds
    path = write_report(config, plan.stages)
    assert "0 of 2" in Reader(path.read_text()).text
    assert json.loads((config.output / "report.json").read_text())["rounds"][0]["name"] == "a"
    assert "| a | 131,072 | 1e7 | base | base | base | - | - | - | - | - |" in (config.output / "report.md").read_text()
    assert not (config.output / HASHES).exists(), "a report changes nothing of a run's"


def test_the_markdown_has_the_same_rows(rounds: tuple[Config, Plan]) -> None:
    config, plan = rounds
    fill(config, plan)
    text = write_report(config, plan.stages).with_suffix(".md").read_text()
    assert "| a/train | waits | 1 | 60 min |" in text


def test_curves_of_many_iterations_are_averaged_and_keep_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(metrics(10 * POINTS + 3) + '{"iteration": 9')
    curves = training_curves(path)
    assert curves.keys() == {"iteration", "loss", "rewards/margins"}
    assert len(curves["loss"]) == len(curves["iteration"]) <= POINTS
    assert curves["iteration"][0] == 6.0, "the mean of the first eleven"
    assert set(curves["rewards/margins"]) == {-1.0}
    path.write_text(metrics(3))
    assert training_curves(path)["iteration"] == [1.0, 2.0, 3.0]
    assert training_curves(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (5940.0, "99 min"), (6000.0, "1 h 40 min")]
)
def test_times_are_told_as_people_do(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
