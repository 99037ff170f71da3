"""A run that was killed, stopped or moved to another layout goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from megatron_longpo.conversion.record import find_iteration
from megatron_longpo.conversion.safe_metadata import check_metadata
from tests.support.launch import ROOT, Nursery
from tests.support.layouts import read_dump
from tests.support.scenario import Scenario

TRAIN = "pretrain_longpo.py"
ITERATIONS, INTERVAL = 9, 3
TIMINGS = ("seconds", "tokens_per_second", "peak_memory_bytes")
# three epochs of four pairs and part of a fourth; clipping, decay and warm-up are on, so that each must be restored
COMMON = ("--global-batch-size", 2, "--lr", 1e-3, "--weight-decay", 0.1, "--save-interval", INTERVAL)
KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "adam": (1, ()),
    "rmsprop": (1, ("--optimizer", "rmsprop")),
    "adam-distributed": (2, ("--use-distributed-optimizer",)),
}


def arguments_for(scenario: Scenario, folder: Path, *extra: object, iterations: int = ITERATIONS) -> list[object]:
    inputs = ("--pretrained-checkpoint", scenario.native, "--data-path", scenario.prefix)
    return [*inputs, *COMMON, "--train-iters", iterations, "--save", folder, "--load", folder, *extra]


class Straight:
    """Uninterrupted runs, each made once."""

    def __init__(self, scenario: Scenario, nursery: Nursery, folder: Path) -> None:
        self._scenario, self._nursery, self._folder = scenario, nursery, folder

    def of(self, kind: str) -> Path:
        folder = self._folder / kind
        if not folder.exists():
            world_size, flags = KINDS[kind]
            self._nursery.start(TRAIN, arguments_for(self._scenario, folder, *flags), world_size).succeed()
        return folder


@pytest.fixture(scope="module")
def straight(scenario: Scenario, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return Straight(scenario, nursery, tmp_path_factory.mktemp("straight"))


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMINGS} for line in lines]


def reached(folder: Path) -> int:
    """Iterations in metrics.jsonl, without its last line if that is being written."""
    path = folder / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0


def tracked(folder: Path) -> int:
    path = folder / "latest_checkpointed_iteration.txt"
    return int(path.read_text()) if path.exists() else 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Whole tensors of the last checkpoint: weights, and moments where they are stored like weights."""
    return {name: tensor for name, tensor in read_dump(find_iteration(folder)).items() if tensor.is_floating_point()}


def assert_same_run(folder: Path, expected: Path) -> None:
    """Same metrics line by line, same last checkpoint, bit for bit."""
    assert metrics(folder) == metrics(expected)
    assert [line["iteration"] for line in metrics(folder)] == list(range(1, ITERATIONS + 1))
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    norm = "decoder.final_layernorm.weight"
    assert not torch.equal(weights(expected / f"iter_{INTERVAL:07d}")[norm], theirs[norm]), "nothing was trained"


def is_saving(folder: Path) -> bool:
    return any(folder.glob(".saving-*")) if folder.exists() else False


@pytest.mark.parametrize(("kind", "seed", "in_save"), [
    ("adam", 0, False), ("adam", 2, True), ("rmsprop", 3, False),
    ("adam-distributed", 4, False), ("adam-distributed", 5, True),
])  # fmt: skip
def test_a_run_killed_at_a_random_moment_goes_on_bit_for_bit(
    kind: str, seed: int, in_save: bool, scenario: Scenario, nursery: Nursery, straight: Straight, tmp_path: Path
) -> None:
    expected, (world_size, flags), folder = straight.of(kind), KINDS[kind], tmp_path / "run"
    chance = random.Random(seed)
    command = nursery.start(TRAIN, arguments_for(scenario, folder, *flags), world_size)
    # at least one checkpoint, or there is nothing to go on from; the random moments reach into the third interval
    iteration = chance.randrange(INTERVAL, ITERATIONS - 1)
    command.wait_until(lambda: reached(folder) >= iteration and tracked(folder) >= INTERVAL)
    if in_save:
        command.wait_until(lambda: is_saving(folder))
    time.sleep(chance.uniform(0, 0.05))
    command.send(signal.SIGKILL)
    assert set(command.wait()) == {-signal.SIGKILL}
    done = tracked(folder)
    assert INTERVAL <= done < ITERATIONS
    resumed = nursery.start(TRAIN, arguments_for(scenario, folder, *flags), world_size).succeed()
    assert f"resuming after iteration {done}" in resumed.output()
    assert_same_run(folder, expected)
    assert not is_saving(folder)


def photograph_saves(folder: str, album: str) -> None:
    """Copy ``folder`` just before every change that the process makes to it: what a kill at that instant would leave."""
    busy: list[int] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if busy or event not in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"):
            return
        if not os.fspath(str(arguments[0])).startswith(folder) or not Path(folder).exists():
            return
        busy.append(1)
        Path(album).mkdir(exist_ok=True)
        shutil.copytree(folder, Path(album) / f"{len(list(Path(album).iterdir())):03d}")
        busy.pop()

    sys.addaudithook(hook)


def test_a_kill_at_any_instant_of_a_save_leaves_the_last_whole_checkpoint(
    scenario: Scenario, nursery: Nursery, straight: Straight, tmp_path: Path
) -> None:
    folder, album = tmp_path / "run", tmp_path / "album"
    arguments = arguments_for(scenario, folder, "--keep-checkpoints", 1)
    nursery.start(TRAIN, arguments, 1, photograph_saves, (str(folder), str(album))).succeed()
    pictures = sorted(album.iterdir())
    half_written = [picture for picture in pictures if is_saving(picture) and tracked(picture)]
    between = [p for p in pictures if tracked(p) and (p / f"iter_{tracked(p) + INTERVAL:07d}").exists()]
    assert half_written, "no picture shows a checkpoint that is being written"
    assert between, "no picture shows a checkpoint that is whole but not announced"
    last = 0
    for picture in pictures:
        if tracked(picture):
            check_metadata(find_iteration(picture))
        assert tracked(picture) >= last, "progress was lost"
        last = tracked(picture)
    assert last == ITERATIONS
    for number, picture in enumerate((half_written[-1], between[-1])):
        again = tmp_path / f"again-{number}"
        shutil.copytree(picture, again)
        nursery.start(TRAIN, arguments_for(scenario, again, "--keep-checkpoints", 2)).succeed()
        assert metrics(again) == metrics(straight.of("adam"))
        assert not is_saving(again), "a half-written checkpoint was left behind"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_exits_with_0_and_the_run_goes_on(
    number: int, scenario: Scenario, nursery: Nursery, straight: Straight, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = nursery.start(TRAIN, arguments_for(scenario, folder))
    command.wait_until(lambda: reached(folder) >= 1)
    command.send(number)
    assert command.wait() == [0]
    done = reached(folder)
    assert 1 <= done < ITERATIONS
    assert tracked(folder) == done
    nursery.start(TRAIN, arguments_for(scenario, folder)).succeed()
    assert_same_run(folder, straight.of("adam"))


def test_one_rank_that_is_told_to_stop_stops_all(scenario: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = nursery.start(TRAIN, arguments_for(scenario, folder), world_size=2)
    command.wait_until(lambda: reached(folder) >= 1)
    os.kill(command.pids[1], signal.SIGUSR1)
    assert command.wait() == [0, 0]
    assert 1 <= tracked(folder) == reached(folder) < ITERATIONS


def test_the_newest_checkpoints_are_kept(scenario: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    nursery.start(TRAIN, arguments_for(scenario, folder, "--keep-checkpoints", 2)).succeed()
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_0000006", "iter_0000009"]
    # rolled back by hand: what the run then writes is the newest, whatever lies there with a higher number
    (folder / "latest_checkpointed_iteration.txt").write_text("6")
    last = (folder / "iter_0000009" / "config.json").stat().st_ino
    nursery.start(TRAIN, arguments_for(scenario, folder, "--keep-checkpoints", 1, iterations=8)).succeed()
    assert tracked(folder) == 8
    assert sorted(path.name for path in folder.glob("*iter_*")) == ["iter_0000008", "iter_0000009"]
    # and what lies there is replaced when this run gets as far
    nursery.start(TRAIN, arguments_for(scenario, folder, "--keep-checkpoints", 1)).succeed()
    assert tracked(folder) == 9
    check_metadata(find_iteration(folder))
    assert (folder / "iter_0000009" / "config.json").stat().st_ino != last
    assert sorted(path.name for path in folder.glob("*iter_*")) == ["iter_0000009"]


@pytest.mark.parametrize("flags", [(), ("--use-distributed-optimizer",)], ids=["plain", "distributed-optimizer"])
def test_a_checkpoint_goes_on_in_another_layout(
    flags: tuple[str, ...], scenario: Scenario, nursery: Nursery, tmp_path: Path
) -> None:
    # a large epsilon: Adam would otherwise amplify the round-off of near-zero gradients to the size of the learning rate
    fixed = ("--lr-decay-style", "constant", "--lr-warmup-iters", 0, "--adam-eps", 1e-3, *flags)
    one, moved = tmp_path / "one", tmp_path / "moved"
    uninterrupted = nursery.start(TRAIN, arguments_for(scenario, one, *fixed))
    for iterations, world_size, layout in (
        (3, 2, ("--tensor-model-parallel-size", 2, "--sequence-parallel")),
        (6, 2, ("--pipeline-model-parallel-size", 2)),
        (9, 1, ()),
    ):
        command = nursery.start(
            TRAIN, arguments_for(scenario, moved, *fixed, *layout, iterations=iterations), world_size
        ).succeed()
        assert iterations == 3 or f"resuming after iteration {iterations - 3}" in command.output()
    uninterrupted.succeed()
    for expected, found in zip(metrics(one), metrics(moved), strict=True):
        for name, value in expected.items():
            size = abs(expected["logps/chosen"]) + abs(expected["logps/rejected"])
            bound = 1e-6 * size if "rewards/" in name or "kl/" in name else 1e-5 * max(abs(value), 1.0)
            assert found[name] == pytest.approx(value, abs=bound), (name, expected["iteration"])
    ours, theirs = weights(moved), weights(one)
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= 1e-5, name


def test_converted_weights_are_not_a_run_to_resume(scenario: Scenario, nursery: Nursery, tmp_path: Path) -> None:
    arguments = arguments_for(scenario, tmp_path / "run", "--load", scenario.native)
    command = nursery.start(TRAIN, arguments)
    assert command.wait() == [1]
    (line,) = command.output().strip().splitlines()
    assert line.startswith("error: ")
    assert "--pretrained-checkpoint, not as --load" in line
    assert not (tmp_path / "run").exists()


def test_the_configuration_beside_a_checkpoint_gives_the_same_run(
    scenario: Scenario, nursery: Nursery, straight: Straight, tmp_path: Path
) -> None:
    saved, folder = straight.of("rmsprop") / f"iter_{ITERATIONS:07d}" / "config.json", tmp_path / "run"
    nursery.start(TRAIN, ["--config", saved, "--save", folder, "--load", folder]).succeed()
    assert_same_run(folder, straight.of("rmsprop"))


def torchrun(arguments: list[object]) -> subprocess.Popen[bytes]:
    """Two processes, started as a user starts them."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        TRAIN,
        *map(str, arguments),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_torchrun_killed_and_started_again_makes_the_same_run(
    scenario: Scenario, nursery: Nursery, straight: Straight, tmp_path: Path
) -> None:
    expected, folder = straight.of("adam-distributed"), tmp_path / "run"
    arguments = arguments_for(scenario, folder, *KINDS["adam-distributed"][1])
    killed = torchrun(arguments)
    deadline = time.monotonic() + 240
    while tracked(folder) < INTERVAL and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    ranks = psutil.Process(killed.pid).children(recursive=True)  # torchrun gives them sessions of their own
    for process in (killed, *ranks):
        process.kill()
    killed.communicate()
    assert INTERVAL <= tracked(folder) < ITERATIONS
    resumed = torchrun(arguments)
    output, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, output.decode()
    assert_same_run(folder, expected)


def test_commands_report_their_exit(nursery: Nursery, tmp_path: Path) -> None:
    """The processes that the tests above start fail as real ones do."""
    arguments = ["--data-path", tmp_path / "none", "--pretrained-checkpoint", tmp_path, "--train-iters", 1]
    command = nursery.start(TRAIN, arguments)
    assert command.wait() == [1]
    assert command.output().startswith("error: ")
