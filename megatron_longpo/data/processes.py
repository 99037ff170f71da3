"""Work in several processes, a bounded number of tasks at a time."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from megatron_longpo.utils.errors import UserError

Result = TypeVar("Result")
TASKS_PER_PROCESS = 4
"""Tasks that are handed out at a time: enough that none waits, few enough to hold."""


class Processes:
    """Calls functions in processes of their own, or in this one if there is to be one only. A context manager."""

    def __init__(self, count: int, imports: Sequence[str] = ()) -> None:
        """Take the number of processes, which start with the first call, and modules that all of them will need."""
        self.count = count
        self._imports = list(imports)
        self._executor: ProcessPoolExecutor | None = None

    def in_order(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """The results of ``function(*task)``, in the order of the tasks."""
        if self.count <= 1:
            yield from itertools.starmap(function, tasks)
            return
        waiting: collections.deque[Future[Result]] = collections.deque()
        for task in tasks:
            waiting.append(self._submit(function, task))
            if len(waiting) >= TASKS_PER_PROCESS * self.count:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def as_finished(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """The results of ``function(*task)``, in the order in which they come."""
        if self.count <= 1:
            yield from itertools.starmap(function, tasks)
            return
        remaining = iter(tasks)
        first = itertools.islice(remaining, TASKS_PER_PROCESS * self.count)
        waiting = {self._submit(function, task) for task in first}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {self._submit(function, task) for task in itertools.islice(remaining, len(finished))}
            yield from map(self._result, finished)

    def _submit(self, function: Callable[..., Result], task: tuple[Any, ...]) -> Future[Result]:
        if self._executor is None:
            # Forked from a process that has imported what takes seconds to import, and has done nothing else: not from this
            # one, since threads, of tokenizers and progress bars, do not survive a fork.
            context = get_context("forkserver")
            context.set_forkserver_preload(self._imports)
            self._executor = ProcessPoolExecutor(self.count, mp_context=context, initializer=_prepare)
        return self._executor.submit(function, *task)

    def _result(self, future: Future[Result]) -> Result:
        try:
            return future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died (out of memory?); run the command again, with fewer --workers, to go on"
            ) from None

    def __enter__(self) -> Processes:
        """Nothing starts yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of tasks that have not begun, wait for the others."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _prepare() -> None:
    """In a worker: be one thread, leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
