"""Real processes for parallel tests: a pool of gloo ranks that live through the session and are sent functions.

Every call has a deadline. When a rank fails or the deadline passes, the pool's whole process group is killed and the
traceback of the first rank that failed is raised; the next call starts a fresh pool.
"""

from __future__ import annotations

import gc
import glob
import itertools
import multiprocessing as mp
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any


class RankFailure(AssertionError):
    """A rank raised, died, or did not answer in time."""


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _serve(rank: int, world_size: int, rendezvous: str, pipe: Connection) -> None:
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    os.setsid()
    os.environ.update(
        OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1", RANK=str(rank), WORLD_SIZE=str(world_size), GLOO_SOCKET_IFNAME="lo"
    )
    import torch
    import torch.distributed as dist

    from megatron_longpo.parallel import cpu_backend
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.utils.errors import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)
    cpu_backend.install()
    for number in itertools.count():
        task = pipe.recv()
        if task is None:
            return
        function, arguments = task
        try:
            # a world of its own for every call: gloo's threads of groups that are never closed would eat the machine
            dist.init_process_group("gloo", init_method=f"file://{rendezvous}-{number}", rank=rank, world_size=world_size)
            result = function(*arguments)
            if dist.is_initialized():
                dist.barrier()
                parallel_state.destroy()
            pipe.send((True, result))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        gc.collect()  # models hold their groups, and each group holds threads


class WorkerPool:
    """``world_size`` ranks joined in one gloo group."""

    def __init__(self, world_size: int) -> None:
        """Start the processes (spawned, so that each imports for itself)."""
        context = mp.get_context("spawn")
        self._rendezvous = tempfile.mktemp(prefix="rendezvous-")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, self._rendezvous, theirs))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 180.0) -> list[Any]:
        """Call ``function(*arguments)`` on every rank and return the results in rank order.

        Raises:
            RankFailure: with the first failing rank's traceback; the pool is killed.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise RankFailure(f"ranks {sorted(waiting.values())} did not answer within {timeout:.0f} s")
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[arg-type]
                results[rank] = self._receive(pipe, rank)  # type: ignore[arg-type]
        return [results[rank] for rank in sorted(results)]

    def _receive(self, pipe: Connection, rank: int) -> Any:
        try:
            succeeded, value = pipe.recv()
        except EOFError:
            succeeded, value = False, "the process died"
        if not succeeded:
            self.kill()
            raise RankFailure(f"rank {rank} failed first:\n{value}")
        return value

    @property
    def is_alive(self) -> bool:
        """Whether every rank still runs."""
        return all(process.is_alive() for process in self._processes)

    def kill(self) -> None:
        """Kill every rank and its children."""
        for process in self._processes:
            if process.is_alive():
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    process.kill()
        for process in self._processes:
            process.join(10)
        for path in glob.glob(f"{self._rendezvous}-*"):
            os.unlink(path)


class Workers:
    """Pools by world size, started when first needed."""

    def __init__(self) -> None:
        """No pool yet."""
        self._pools: dict[int, WorkerPool] = {}

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 180.0) -> list[Any]:
        """`WorkerPool.run` on a pool of that size."""
        pool = self._pools.get(world_size)
        if pool is None or not pool.is_alive:
            pool = self._pools[world_size] = WorkerPool(world_size)
        return pool.run(function, *arguments, timeout=timeout)

    def close(self) -> None:
        """Kill every pool."""
        for pool in self._pools.values():
            pool.kill()
        self._pools.clear()
