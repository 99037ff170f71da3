"""Scores are found by their names, and the rule stops where it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.evaluation.plan import SUITES
from megatron_longpo.evolution.decide import Question, decide
from megatron_longpo.evolution.scores import find_score, is_asked
from megatron_longpo.utils.errors import UserError


def task(score: float) -> dict[str, float]:
    return {"score": score, "stderr": 0.0}


RESULTS: dict[str, Any] = {
    "model": {"name": "m"},
    "ruler": {
        "lengths": {
            "4096": {
                "tasks": {"niah_single_1": task(90.0), "vt": task(50.0)},
                "groups": {"NIAH": 90.0, "VT": 50.0},
                "average_13": task(70.0),
            },
            "8192": {"tasks": {"vt": task(40.0)}, "groups": {"VT": 40.0}, "average_13": task(40.0)},
        }
    },
    "infinitebench": {"tasks": {"longbook_qa_eng": task(12.0)}, "average": None},
    "short": {"mmlu": task(60.0), "hellaswag": task(80.0)},
    "questions": {"mine": {**task(33.0), "groups": {"1k": task(44.0), "a/b": task(55.0)}}},
}


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("ruler", 70.0), ("niah", 90.0), ("vt", 50.0), ("niah_single_1", 90.0), ("vt@8192", 40.0), ("ruler@8192", 40.0),
        ("longbook_qa_eng", 12.0), ("infinitebench", None), ("mmlu", 60.0), ("short", 70.0), ("questions:mine", 33.0),
        ("questions:mine/1k", 44.0), ("questions:mine/a/b", 55.0), ("questions:mine/2k", None), ("questions:yours", None),
        ("cwe", None), ("niah@8192", None), ("vt@16384", None), ("arc_challenge", None),
    ],
)  # fmt: skip
def test_a_score_is_found_by_its_name(name: str, score: float | None) -> None:
    assert find_score(RESULTS, name, 4096) == score


def test_a_score_that_was_not_measured_is_none_of_any_results() -> None:
    for name in ("ruler", "vt", "short", "mmlu", "questions:mine", "infinitebench"):
        assert find_score({}, name, 4096) is None


@pytest.mark.parametrize(
    ("name", "tasks", "questions", "asked"),
    [
        ("ruler", ["niah"], [], True), ("niah", ["ruler"], [], True), ("vt", ["niah"], [], False), ("vt@512", ["vt"], [], True),
        ("mmlu", ["short"], [], True), ("short", ["mmlu"], [], True), ("mmlu", ["ruler"], [], False),
        ("questions:a/g", [], ["a"], True), ("questions:b", ["ruler"], ["a"], False), ("no-such", ["ruler"], ["no-such"], False),
    ],
)  # fmt: skip
def test_whether_a_score_is_asked_follows_the_suites(name: str, tasks: list[str], questions: list[str], asked: bool) -> None:
    assert is_asked(name, tasks, questions, SUITES) == asked


def decision(folder: Path, base: float, before: float, after: float, vt: tuple[float, float] = (0, 0), **rule: Any) -> Any:
    """Decide on a short score (mmlu) and a long one (vt at 8)."""
    paths = {}
    for name, short, long in (("base", base, 0.0), ("before", before, vt[0]), ("after", after, vt[1])):
        paths[name] = folder / f"{name}.json"
        lengths = {"8": {"tasks": {"vt": task(long)}, "groups": {}}}
        paths[name].write_text(json.dumps({"short": {"mmlu": task(short)}, "ruler": {"lengths": lengths}}))
    return decide(Question(**paths, **{"length": 8, "max_short_loss": 1.0, "min_long_gain": 0.0, **rule}))


@pytest.mark.parametrize(("after", "goes_on"), [(60.0, True), (65.0, True), (59.0, True), (58.99, False)])
def test_the_short_score_may_lose_against_the_base_up_to_its_bound(tmp_path: Path, after: float, goes_on: bool) -> None:
    found = decision(tmp_path, 60.0, 10.0, after, short=["mmlu"])
    assert found["continue"] == goes_on
    assert found["short"] == {
        "before": 60.0, "after": after, "scores": {"mmlu": {"before": 60.0, "after": after}},
    }  # fmt: skip
    assert found["reasons"][0].startswith(f"short score {after:.2f}, {after - 60:+.2f} from the base's (may lose 1)")


@pytest.mark.parametrize(("gain", "goes_on"), [(0.5, True), (0.1 + 0.2 + 0.2, True), (0.4, False), (-3.0, False)])
def test_the_long_score_must_gain_on_the_model_before(tmp_path: Path, gain: float, goes_on: bool) -> None:
    found = decision(tmp_path, 0.0, 0.0, 0.0, (40.0, 40.0 + gain), long=["vt"], min_long_gain=0.5)
    assert found["continue"] == goes_on
    assert (found["short"], found["long"]["before"]) == (None, 40.0)


def test_rounding_does_not_stop_what_is_at_the_bound(tmp_path: Path) -> None:
    assert 16.1 - 15.1 > 1.0
    assert decision(tmp_path, 16.1, 0.0, 15.1, short=["mmlu"])["continue"]


def test_one_reason_to_stop_is_enough_and_is_the_one_that_is_told(tmp_path: Path) -> None:
    rule = {"short": ["mmlu"], "long": ["vt"]}
    found = decision(tmp_path, 60.0, 60.0, 50.0, (10.0, 20.0), **rule)
    assert not found["continue"]
    assert [reason.split()[0] for reason in found["reasons"]] == ["short"]
    found = decision(tmp_path, 60.0, 60.0, 60.0, (10.0, 9.0), **rule)
    assert [reason.split()[0] for reason in found["reasons"]] == ["long"]
    assert len(decision(tmp_path, 60.0, 60.0, 60.0, (10.0, 20.0), **rule)["reasons"]) == 2


def test_a_score_is_the_mean_over_its_names(tmp_path: Path) -> None:
    found = decision(tmp_path, 60.0, 60.0, 60.0, (10.0, 20.0), short=["mmlu", "short"], long=["vt", "mmlu"])
    assert found["long"]["before"] == (10 + 60) / 2
    assert found["long"]["after"] == (20 + 60) / 2


def test_without_a_rule_it_goes_on(tmp_path: Path) -> None:
    found = decision(tmp_path, 60.0, 60.0, 0.0)
    assert (found["continue"], found["reasons"]) == (True, ["there is no rule to stop"])


def test_results_that_are_missing_or_lack_the_score_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base.json: has no score arc_challenge \(length 8\); ask for it in evaluate"):
        decision(tmp_path, 1.0, 1.0, 1.0, short=["arc_challenge"])
    question = {"length": 8, "short": ["mmlu"], "max_short_loss": 1.0, "min_long_gain": 0.0}
    absent = dict.fromkeys(("base", "before", "after"), tmp_path / "absent.json")
    with pytest.raises(UserError, match=r"absent.json: is not there"):
        decide(Question(**absent, **question))
    (tmp_path / "absent.json").write_text("[]")
    with pytest.raises(UserError, match=r"absent.json: not results of tools/evaluate.py"):
        decide(Question(**absent, **question))
