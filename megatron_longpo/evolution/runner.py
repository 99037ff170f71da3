"""Run the stages of a chain that are not done, in order, one run at a time in an output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import glob
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from megatron_longpo.evolution.hashing import Hasher
from megatron_longpo.evolution.manifest import Manifest, Record, versions
from megatron_longpo.evolution.order import feeders
from megatron_longpo.evolution.processes import StopRequest, end_processes, run_command
from megatron_longpo.evolution.stages import Stage
from megatron_longpo.evolution.states import CHANGED, DONE, judge, says_stop
from megatron_longpo.utils.errors import UserError

HASHES = "hashes.json"
LOCK = "lock"
WAIT = 1.0
"""Seconds in which a look at the lock is over."""


class Stopped(UserError):
    """The run was asked to stop, and what it was doing is not done."""

    def __init__(self, stage: Stage) -> None:
        """Say where."""
        super().__init__(f"stopped during {stage.name}, as asked; the same command goes on there")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a stage's command is started: its words, and whether it takes USR1 as a warning."""

    words: Sequence[str]
    takes_warning: bool = False


def launch_here(stage: Stage) -> Launch:
    """Start a command in this environment. A warning is not for torchrun, which would die of it."""
    words = [*_program(stage.command[0]), *stage.command[1:]]
    return Launch(words, takes_warning=stage.saves and stage.command[0] != "torchrun")


def _program(name: str) -> tuple[str, ...]:
    if name == "torchrun":
        return (sys.executable, "-m", "torch.distributed.run")
    return (sys.executable,) if re.fullmatch(r"python(3(\.\d+)?)?", name) else (name,)


@contextlib.contextmanager
def only_run(folder: Path, seconds: float = WAIT) -> Iterator[None]:
    """Be the only run in an output folder; what a killed one has left running is ended first.

    Args:
        folder: made if absent.
        seconds: how long to wait for another run to end.

    Raises:
        UserError: another run is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with (folder / LOCK).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(f"{folder}: another run is at work here; wait for it to end") from None
                time.sleep(0.1)
            except OSError as error:
                print(f"warning: {folder}: no lock here ({error.strerror}); start one run at a time", file=sys.stderr)
                break
        ended = end_processes(os.path.realpath(folder))
        if ended:
            print(f"ended {ended} process{'' if ended == 1 else 'es'} that a killed run had left", flush=True)
        yield


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Stages in order, and how they are run.

    Attributes:
        stages: in order.
        folder: the output folder.
        launch: how commands are started.
        environment: variables of the commands, in place of this process's.
    """

    stages: Sequence[Stage]
    folder: Path
    launch: Callable[[Stage], Launch] = launch_here
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_chain(chain: Chain, only: str | None = None) -> dict[str, float]:
    """Run every stage that is not done, in order, until one says that the chain ends here. Call it inside `only_run`.

    A stage is done when its command, the hashes of its inputs and those of its outputs are what the manifest has. Where the
    command or an input has changed, its old outputs are removed first; a stage that was interrupted is started again over what
    it has left, because the commands go on by themselves.

    Args:
        chain: the stages.
        only: run this one alone; those that it needs must be done.

    Returns:
        The seconds that each stage took when it was run last.

    Raises:
        UserError: a command failed, or what a stage needs is not there.
        Stopped: a scheduler has asked to stop.
    """
    manifest, hasher = Manifest(chain.folder), Hasher.load(chain.folder / HASHES)
    needed = feeders(chain.stages, only) if only else set()
    seconds: dict[str, float] = {}
    with StopRequest() as request:
        for number, stage in enumerate(chain.stages, start=1):
            shown = only in (None, stage.name)
            if shown:
                print(f"\n[{number}/{len(chain.stages)}] {stage.title}", flush=True)
                print(f"$ {shlex.join(stage.command)}", flush=True)
            verdict = judge(stage, manifest.get(stage.name), hasher) if shown or stage.name in needed else None
            if verdict and verdict.state != DONE:
                if not shown:
                    raise UserError(f"stage {only} needs {stage.name}, which is not done; run that first")
                if verdict.state == CHANGED:
                    print(f"({verdict.reason}: from scratch)", flush=True)
                _run(stage, verdict.inputs, chain, manifest, hasher, request)
            record = manifest.get(stage.name)
            seconds[stage.name] = (record and record.seconds) or 0.0
            if shown and verdict and verdict.state == DONE:
                print(f"(done before, in {seconds[stage.name]:.0f} s)", flush=True)
            if verdict and says_stop(stage):
                _tell_skipped(chain.stages[number:], only)
                break
            if stage.name == only:
                break
    return seconds


def _tell_skipped(skipped: Sequence[Stage], only: str | None) -> None:
    names = [stage.name for stage in skipped if only in (None, stage.name)]
    if names:
        print(f"\nskipped, because the decision is to stop: {', '.join(names)}", flush=True)


def _run(
    stage: Stage, inputs: Mapping[str, str | None], chain: Chain, manifest: Manifest, hasher: Hasher, request: StopRequest
) -> None:
    """Run a stage and keep its record."""
    absent = [name for name, digest in inputs.items() if digest is None]
    if absent:
        raise UserError(f"stage {stage.name} needs {absent[0]}, which is not there")
    if request.given:
        raise Stopped(stage)
    before = manifest.get(stage.name)
    goes_on = before is not None and before.outputs is None and stage.is_same(before.command) and before.inputs == inputs
    if not goes_on:
        # before the record: a kill in between leaves one that does not fit what is there, not one that seems to
        _remove(stage, chain.folder)
    record = Record(
        command=stage.command,
        inputs=dict(inputs),
        attempts=before.attempts + 1 if before and goes_on else 1,
        start=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions(),
    )
    manifest.put(stage.name, record)
    launch, started = chain.launch(stage), time.monotonic()
    variables = {**stage.environment, **os.environ, **chain.environment}
    code = run_command(launch.words, variables, chain.folder, request, takes_warning=launch.takes_warning)
    took = round(time.monotonic() - started, 1)
    if request.given:
        raise Stopped(stage)
    record = dataclasses.replace(record, exit_code=code, seconds=took)
    manifest.put(stage.name, record)
    if code:
        raise UserError(f"stage {stage.name} failed with exit code {code}; its messages are above. A re-run goes on here")
    outputs = {str(artifact): hasher.digest(artifact) for artifact in stage.outputs}
    missing = [name for name, digest in outputs.items() if digest is None]
    if missing:
        raise UserError(f"stage {stage.name} ended without making {missing[0]}")
    manifest.put(stage.name, dataclasses.replace(record, outputs=outputs))
    hasher.save(chain.folder / HASHES)
    print(f"({took:.0f} s)", flush=True)


def _remove(stage: Stage, folder: Path) -> None:
    """Remove what a stage has left in the output folder. What lies elsewhere is the user's, and stays."""
    home = folder.resolve()
    patterns = [*(glob.escape(str(artifact.path)) for artifact in stage.outputs), *stage.leftovers]
    for pattern in patterns:
        for path in map(Path, glob.glob(pattern)):
            if home not in path.resolve().parents:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
