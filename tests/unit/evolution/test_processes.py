"""A run that is killed leaves nothing running, and the next one goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_longpo.evolution.processes import MARK, end_processes, marked_processes
from megatron_longpo.evolution.runner import Chain, Launch, Stopped, launch_here, only_run, run_chain
from megatron_longpo.evolution.stages import Artifact, Stage
from tests.support.recorded_commands import ROOT
from tests.support.stage_chains import run, start, write_stage

BREED = """
import os, subprocess, sys, time
folder, generation = sys.argv[1], int(sys.argv[2])
open(f"{folder}/pid{generation}", "w").write(str(os.getpid()))
if generation:
    subprocess.Popen([sys.executable, sys.argv[0], folder, str(generation - 1)], start_new_session=True)
while True:
    open(f"{folder}/beat{generation}", "a").write(".")
    time.sleep(0.01)
"""
"""Writes on and on, and so do its child and grandchild, each in a session of its own."""


@pytest.fixture
def breeding(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "breed.py").write_text(BREED)
    yield Stage(
        name="breed",
        title="",
        command=("python", str(tmp_path / "breed.py"), str(tmp_path), "2"),
        outputs=(Artifact(tmp_path / "never"),),
    )
    end_processes(os.path.realpath(tmp_path))


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.02)


def grown(folder: Path) -> bool:
    return all((folder / f"pid{generation}").exists() and (folder / f"beat{generation}").exists() for generation in range(3))


def beats(folder: Path) -> list[int]:
    return [(folder / f"beat{generation}").stat().st_size for generation in range(3)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_killed_takes_all_its_processes_along(tmp_path, breeding, number):
    if number == signal.SIGHUP:  # under nohup, which a test run may be, it would be ignored
        inherited = signal.signal(number, signal.SIG_DFL)
    process = start([breeding], tmp_path, ROOT)
    if number == signal.SIGHUP:
        signal.signal(number, inherited)
    wait_until(lambda: grown(tmp_path), "all generations run")
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not marked_processes(os.path.realpath(tmp_path)), "nothing is left")
    before = beats(tmp_path)
    time.sleep(0.1)
    assert beats(tmp_path) == before


def test_ctrl_c_in_a_terminal_ends_the_run_and_its_processes(tmp_path, breeding):
    process = start([breeding], tmp_path, ROOT, start_new_session=True)
    wait_until(lambda: grown(tmp_path), "all generations run")
    os.killpg(process.pid, signal.SIGINT)
    process.wait(20)
    assert not marked_processes(os.path.realpath(tmp_path))


def test_what_outlives_run_and_supervisor_is_ended_by_the_next_run(tmp_path, breeding, capfd):
    process = start([breeding], tmp_path, ROOT)
    wait_until(lambda: grown(tmp_path), "all generations run")
    (supervisor,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(supervisor), signal.SIGSTOP)  # it hears of nothing any more
    process.kill()
    process.wait()
    os.kill(int(supervisor), signal.SIGKILL)
    before = beats(tmp_path)
    wait_until(lambda: beats(tmp_path)[:2] > before[:2], "children and grandchildren are orphans at work")
    run([write_stage(tmp_path, "next", "x")], tmp_path)
    assert "that a killed run had left" in capfd.readouterr().out
    assert not marked_processes(os.path.realpath(tmp_path))


def test_what_a_command_leaves_behind_ends_with_it(tmp_path, capfd):
    code = f"sleep 300 & echo $! > {tmp_path}/pid; echo > {tmp_path}/out"
    run([Stage(name="s", title="", command=("sh", "-c", code), outputs=(Artifact(tmp_path / "out"),))], tmp_path)
    assert (tmp_path / "pid").exists()
    assert not marked_processes(os.path.realpath(tmp_path))


def test_what_has_neither_its_parent_nor_its_mark_ends_with_the_command(tmp_path, capfd):
    code = f"env -i setsid sleep 300 & echo $! > {tmp_path}/pid; echo > {tmp_path}/out"
    run([Stage(name="s", title="", command=("sh", "-c", code), outputs=(Artifact(tmp_path / "out"),))], tmp_path)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_another_folder_s_processes_are_let_alone(tmp_path, capfd):
    other = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK: f"{os.path.realpath(tmp_path)}/other"})
    try:
        run([write_stage(tmp_path, "s", "x")], tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_kills_at_random_change_nothing_in_the_end(tmp_path):
    def stages(folder: Path) -> list[Stage]:
        made: list[Stage] = []
        for number in range(5):
            code = "import sys, time; f = open(sys.argv[1], 'w')\nfor i in range(20): f.write(f'{i}\\n'); time.sleep(0.01)"
            inputs = made[-1].outputs if made else ()
            output = folder / f"out{number}"
            command = ("python", "-c", code, str(output))
            made.append(Stage(name=f"s{number}", title="", command=command, inputs=inputs, outputs=(Artifact(output),)))
        return made

    rng, killed = random.Random(1), tmp_path / "killed"
    for _ in range(6):
        process = start(stages(killed), killed, ROOT)
        time.sleep(rng.uniform(0.3, 1.5))
        process.kill()
        process.wait()
    assert start(stages(killed), killed, ROOT).wait() == 0, (killed / "messages").read_text()
    run(stages(tmp_path / "whole"), tmp_path / "whole")
    for number in range(5):
        assert (killed / f"out{number}").read_bytes() == (tmp_path / "whole" / f"out{number}").read_bytes()


def warned_run(folder: Path, stage: Stage) -> str:
    """Warn a run (USR1) as soon as its command is at work; return its messages."""
    process = start([stage], folder, ROOT)
    wait_until(lambda: (folder / "working").exists(), "the command works")
    process.send_signal(signal.SIGUSR1)
    process.wait()
    return (folder / "messages").read_text()


def test_a_warned_run_ends_its_command_and_is_not_done(tmp_path, capfd):
    code = f"import pathlib, time; pathlib.Path('{tmp_path}/working').touch(); time.sleep(300)"
    stage = Stage(name="s", title="", command=("python", "-c", code), outputs=(Artifact(tmp_path / "out"),))
    assert "stopped during s, as asked" in warned_run(tmp_path, stage)
    assert not marked_processes(os.path.realpath(tmp_path))


def test_a_warning_that_comes_between_two_commands_is_not_lost(tmp_path, capfd):
    def warn_and_launch(stage: Stage) -> Launch:
        os.kill(os.getpid(), signal.SIGUSR1)
        return launch_here(stage)

    stage = Stage(name="s", title="", command=("sleep", "300"), outputs=(Artifact(tmp_path / "out"),))
    with only_run(tmp_path), pytest.raises(Stopped):
        run_chain(Chain(stages=[stage], folder=tmp_path, launch=warn_and_launch))
