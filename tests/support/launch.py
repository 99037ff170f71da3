"""The commands in processes of their own, without paying for their imports each time.

A nursery process imports the heavy libraries once and forks a process for every rank of a command, which then runs the
script as ``__main__`` with its arguments and the environment that torchrun would give it. Each rank leads a session of its
own, can be sent any signal, and writes to its own log.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing as mp
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class Order:
    """One process to start.

    Attributes:
        script: path below the repository's root.
        arguments: its command line.
        environment: variables added to the nursery's.
        log: file that takes standard output and error.
        prelude: called first in the process, with ``prelude_arguments``.
        prelude_arguments: its arguments.
    """

    script: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: str
    prelude: Callable[..., None] | None = None
    prelude_arguments: tuple[object, ...] = ()


def _become(order: Order) -> None:
    """Turn a fork of the nursery into the command; does not return."""
    import atexit
    import runpy

    os.setsid()
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order.environment)
    sys.argv = [order.script, *order.arguments]
    code: int = 1
    try:
        if order.prelude is not None:
            order.prelude(*order.prelude_arguments)
        runpy.run_path(str(ROOT / order.script), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _nursery(pipe: Connection) -> None:
    for heavy in ("torch.utils.tensorboard", "megatron_longpo.training.run", "megatron_longpo.training.score"):
        importlib.import_module(heavy)

    children: list[int] = []
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            break
        if isinstance(message, Order):
            child = os.fork()
            if child == 0:
                _become(message)
            children.append(child)
            pipe.send(child)
        else:
            found, status = os.waitpid(message, os.WNOHANG)
            pipe.send(os.waitstatus_to_exitcode(status) if found else None)
    for child in children:
        _kill_session(child)


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


@dataclasses.dataclass
class Command:
    """A command that was started: one process a rank.

    Attributes:
        nursery: who started it.
        pids: by rank.
        logs: by rank.
    """

    nursery: Nursery
    pids: list[int]
    logs: list[Path]

    def output(self, rank: int = 0) -> str:
        """What a rank has written."""
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].exists() else ""

    def send(self, number: int) -> None:
        """Send a signal to every rank."""
        for pid in self.pids:
            os.kill(pid, number)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for something that the command does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not reached in {seconds} s:\n{self.output()}"
            time.sleep(0.002)

    def wait(self, seconds: float = 240.0, grace: float = 0.0) -> list[int]:
        """Exit codes by rank (negative: the signal); what is left of their sessions is killed then.

        When a rank fails the others have ``grace`` seconds to end too: they might wait for it until a collective's deadline.
        """
        deadline = time.monotonic() + seconds
        codes: dict[int, int] = {}
        failed_at: float | None = None
        while len(codes) < len(self.pids):
            for pid in self.pids:
                code = codes.get(pid, self.nursery.poll(pid) if pid not in codes else None)
                if code is not None:
                    codes[pid] = code
            if any(codes.values()) and failed_at is None:
                failed_at = time.monotonic()
            late = time.monotonic() > deadline
            if late or (failed_at is not None and time.monotonic() - failed_at >= grace):
                for pid in set(self.pids) - codes.keys():
                    _kill_session(pid)
            assert not late, f"still running after {seconds} s:\n{self.output()}"
            time.sleep(0.01)
        for pid in self.pids:
            _kill_session(pid)
        return [codes[pid] for pid in self.pids]

    def succeed(self, seconds: float = 240.0) -> Command:
        """Wait, and fail unless every rank exits with 0."""
        codes = self.wait(seconds)
        everything = "\n".join(f"rank {rank}:\n{self.output(rank)}" for rank in range(len(self.pids)))
        assert set(codes) == {0}, f"exit codes {codes}\n{everything}"
        return self


class Nursery:
    """Starts commands."""

    def __init__(self, folder: Path) -> None:
        """Start the process that forks; logs go to ``folder``."""
        context = mp.get_context("spawn")
        self._folder, self._started = folder, 0
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_nursery, args=(theirs,))
        self._process.start()
        theirs.close()

    def start(
        self,
        script: str,
        arguments: Sequence[object],
        world_size: int = 1,
        prelude: Callable[..., None] | None = None,
        prelude_arguments: tuple[object, ...] = (),
    ) -> Command:
        """Start a script, as plain python does for one process, or as torchrun does for several."""
        self._started += 1
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
        command = Command(self, [], [self._folder / f"{self._started:03d}-{rank}.log" for rank in range(world_size)])
        for rank, log in enumerate(command.logs):
            environment = {**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
            order = Order(script, tuple(map(str, arguments)), environment, str(log), prelude, prelude_arguments)
            self._pipe.send(order)
            command.pids.append(self._pipe.recv())
        return command

    def poll(self, pid: int) -> int | None:
        """Exit code of a process, or None while it runs."""
        self._pipe.send(pid)
        return self._pipe.recv()

    def close(self) -> None:
        """Kill everything that was started."""
        self._pipe.close()
        self._process.join(10)
