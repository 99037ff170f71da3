"""Evaluation during training as a user runs it: written where metrics are, the same after a kill, refused in one line."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.launch import Nursery
from tests.support.scenario import Scenario

TRAIN = "pretrain_longpo.py"
ITERATIONS = 6
COMMON = ("--global-batch-size", 2, "--lr", 1e-2, "--seq-length", 1024, "--train-iters", ITERATIONS, "--save-interval", 2)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "own.jsonl"
    records = [{"question": f"What is {n}?", "answers": [str(n), "a"], "group": f"{n % 2}x"} for n in range(6)]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def arguments_for(scenario: Scenario, questions: Path, folder: Path, *extra: object) -> list[object]:
    inputs = ("--pretrained-checkpoint", scenario.native, "--data-path", scenario.prefix)
    tasks = ("--eval-tasks", "niah_single_1:640", f"questions:{questions}", "--eval-tasks-samples", 2)
    return [*inputs, *COMMON, *tasks, "--save", folder, "--load", folder, *extra]


def scores(folder: Path) -> dict[int, dict[str, float]]:
    """Evaluations by iteration."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = {line["iteration"]: {name: line[name] for name in line if name.startswith("eval/")} for line in lines}
    return {iteration: values for iteration, values in found.items() if values}


@pytest.fixture(scope="module")
def straight(scenario: Scenario, questions: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    output = nursery.start(TRAIN, arguments_for(scenario, questions, folder, "--eval-tasks-interval", 4)).succeed().output()
    assert "evaluation tasks: niah_single_1/640, own, own/0x, own/1x" in output
    assert "| eval/niah_single_1/640 0 |" in output
    return folder


def test_scores_come_at_the_interval_and_at_the_end(straight: Path) -> None:
    found = scores(straight)
    assert list(found) == [4, 6]
    labels = ("niah_single_1/640", "own", "own/0x", "own/1x")
    assert found[6].keys() == {f"eval/{label}{kind}" for label in labels for kind in ("", "/nll")}
    assert found[4]["eval/own/nll"] != found[6]["eval/own/nll"], "the weights have changed"
    assert all(value > 0 for name, value in found[6].items() if name.endswith("/nll"))


def test_scores_stand_in_tensorboard(straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("eval/own/0x/nll")}
    assert written == pytest.approx({step: values["eval/own/0x/nll"] for step, values in scores(straight).items()})


def test_a_run_that_was_killed_writes_the_same_scores(
    scenario: Scenario, questions: Path, nursery: Nursery, straight: Path, tmp_path: Path
) -> None:
    arguments = arguments_for(scenario, questions, tmp_path / "run", "--eval-tasks-interval", 4)
    command = nursery.start(TRAIN, arguments)
    tracker = tmp_path / "run" / "latest_checkpointed_iteration.txt"
    command.wait_until(tracker.exists)
    command.send(signal.SIGKILL)
    assert command.wait() == [-signal.SIGKILL]
    assert "resuming after iteration" in nursery.start(TRAIN, arguments).succeed().output()
    assert scores(tmp_path / "run") == scores(straight)


def test_a_rank_without_samples_takes_part_where_weights_are_still_to_be_gathered(
    scenario: Scenario, questions: Path, nursery: Nursery, tmp_path: Path
) -> None:
    found = []
    for name, flags in (("plain", ()), ("overlap", ("--overlap-grad-reduce", "--overlap-param-gather"))):
        asked = ("--eval-tasks", "niah_single_1:640", "--eval-tasks-samples", 1, "--eval-tasks-interval", 1)
        arguments = arguments_for(scenario, questions, tmp_path / name, *asked, "--use-distributed-optimizer", *flags)
        nursery.start(TRAIN, arguments, 2).succeed(seconds=120)
        found.append(scores(tmp_path / name))
    assert list(found[0]) == list(found[1]) == list(range(1, ITERATIONS + 1))
    for iteration, values in found[0].items():
        assert found[1][iteration] == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize("dry", [False, True])
def test_what_does_not_fit_is_refused_before_training(
    scenario: Scenario, questions: Path, nursery: Nursery, tmp_path: Path, dry: bool
) -> None:
    arguments = arguments_for(scenario, questions, tmp_path / "run", "--eval-tasks", "niah:4096")
    command = nursery.start(TRAIN, [*arguments, "--dry-run"] if dry else arguments)
    assert command.wait() == [1]
    lines = [line for line in command.output().splitlines() if line]
    reason = "prompt and answer have up to 4096 tokens, --seq-length is 1024; raise it, or leave this out"
    assert lines[-1] == f"error: --eval-tasks niah:4096: {reason}"
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_flags_without_tasks_are_said_to_do_nothing(scenario: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    inputs = ("--pretrained-checkpoint", scenario.native, "--data-path", scenario.prefix, *COMMON, "--save", tmp_path / "run")
    output = nursery.start(TRAIN, [*inputs, "--eval-tasks-interval", 1, "--dry-run"]).succeed().output()
    assert "--eval-tasks-interval has no effect: no --eval-tasks are given" in output
