"""The state of each stage of a chain, for a reader."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Sequence
from pathlib import Path

from megatron_longpo.evolution.hashing import Hasher
from megatron_longpo.evolution.manifest import Manifest
from megatron_longpo.evolution.order import feeders
from megatron_longpo.evolution.runner import HASHES, LOCK
from megatron_longpo.evolution.stages import Stage
from megatron_longpo.evolution.states import DONE, INTERRUPTED, TO_DO, judge, says_stop

RUNNING, SKIPPED, WAITS = "running", "skipped", "waits"


@dataclasses.dataclass(frozen=True)
class Row:
    """A stage as it is shown."""

    name: str
    state: str
    reason: str
    attempts: str = ""
    seconds: str = ""
    start: str = ""


def list_states(stages: Sequence[Stage], folder: Path, *, at_work: bool | None = None) -> list[Row]:
    """Judge every stage by the manifest and the disk; nothing is written.

    Args:
        stages: in order.
        folder: the output folder.
        at_work: whether a run is at work there; None: look.
    """
    manifest, hasher = Manifest(folder), Hasher.load(folder / HASHES)
    at_work = is_at_work(folder) if at_work is None else at_work
    stopped, unfinished = False, set[str]()
    rows = []
    for stage in stages:
        record = manifest.get(stage.name)
        verdict = judge(stage, record, hasher)
        state, reason = verdict.state, verdict.reason
        before = unfinished & feeders(stages, stage.name)
        if state != DONE:
            unfinished.add(stage.name)
        if stopped:
            state, reason = SKIPPED, "the decision is to stop"
        elif state == INTERRUPTED and at_work:
            state = RUNNING
        elif before and state != TO_DO:
            state, reason = WAITS, f"for {next(one.name for one in stages if one.name in before)}"
        stopped = stopped or (verdict.state == DONE and says_stop(stage))
        seconds = "" if record is None or record.seconds is None else f"{record.seconds:.0f}"
        shown = ("", "", "") if record is None else (str(record.attempts), seconds, record.start.replace("+00:00", ""))
        rows.append(Row(stage.name, state, reason, *shown))
    return rows


def is_at_work(folder: Path) -> bool:
    """Whether a run holds the lock of an output folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False
