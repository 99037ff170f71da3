"""Commands whose processes all end when the run ends, however it ends.

Between a run and its command stands a small process (`supervise`). The kernel tells it when the run dies, and it then ends the
command and everything that the command has started, also what has gone into a session of its own, as torchrun's workers do:
orphans become its children. Where the small process was killed too, the next run finds them by a variable in their environment
before it starts anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_longpo.utils.errors import UserError

MARK = "MEGATRON_LONGPO_STAGE_OF"
"""Variable of every process of a stage: the output folder that it works for."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 20.0
"""Seconds in which a killed process must be gone."""


class StopRequest:
    """Whether a scheduler has asked this process to stop soon (USR1), and whom that concerns."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.given = False
        self._told: Callable[[], None] | None = None
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        """Listen."""
        self._before = signal.signal(signal.SIGUSR1, self._take)
        return self

    def __exit__(self, *unused: object) -> None:
        """Listen no more."""
        signal.signal(signal.SIGUSR1, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.given = True
        if self._told:
            self._told()

    def tell(self, told: Callable[[], None] | None) -> None:
        """Whom to tell from now on; at once, if the warning came before."""
        self._told = told
        if self.given and told:
            told()


def run_command(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, request: StopRequest, *, takes_warning: bool = False
) -> int:
    """Run a command to its end.

    Args:
        command: program and arguments.
        environment: all variables.
        folder: the output folder that it works for.
        request: goes on to a command that takes it, and ends another one. What was asked to stop may not have finished its
            work, whatever its code is.
        takes_warning: on USR1 the command saves what it has, and exits.

    Returns:
        Its exit code; as a shell tells it, where a signal ended it.
    """
    supervised = [sys.executable, "-m", "megatron_longpo.evolution.supervise", os.path.realpath(folder), str(os.getpid())]
    process = subprocess.Popen([*supervised, *command], env=dict(environment))
    request.tell(lambda: process.send_signal(signal.SIGUSR1 if takes_warning else signal.SIGTERM))
    try:
        code = process.wait()
        return code if code >= 0 else 128 - code
    except KeyboardInterrupt:
        _wait_or_end(process)  # a terminal has told the command as well
        raise
    finally:
        request.tell(None)


def _wait_or_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_PATIENCE / 2)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def die_with_parent(number: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends. Does nothing where the kernel is not Linux."""
    _ask_kernel(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends. Does nothing where the kernel is not Linux."""
    _ask_kernel(_PR_SET_CHILD_SUBREAPER, 1)


def _ask_kernel(what: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(what, value)


def end_children(folder: str) -> int:
    """Kill every child of this process, and those that come to it by `adopt_orphans`, and wait until there is none.

    Returns:
        How many there were.

    Raises:
        UserError: some do not go away.
    """
    return _end(folder, _children)


def end_processes(folder: str) -> int:
    """Kill every process of a stage of an output folder, and wait until they are gone.

    Returns:
        How many there were.

    Raises:
        UserError: some do not go away.
    """
    return _end(folder, lambda: marked_processes(folder))


def _end(folder: str, find: Callable[[], set[int]]) -> int:
    found: set[int] = set()
    deadline = time.monotonic() + _PATIENCE
    while left := find():
        if time.monotonic() > deadline:
            raise UserError(f"{folder}: processes {sorted(left)} of an earlier run cannot be ended; end them and run again")
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone, or another user's by now
                os.kill(pid, signal.SIGKILL)
        found |= left
        time.sleep(0.02)
    return len(found)


def _children() -> set[int]:
    """Children of this process, without those that have ended."""
    with contextlib.suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(place.name))
    return found


def marked_processes(folder: str) -> set[int]:
    """Processes on this machine that work for an output folder, but for this one."""
    mark = f"{MARK}={folder}".encode()
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if mark in variables.split(b"\0"):
            found.add(int(place.name))
    return found - {os.getpid()}
