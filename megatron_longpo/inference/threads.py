"""Calls in threads that a program's end does not wait for."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], number: int) -> Iterator[tuple[Item, Result]]:
    """Call a function for every item, ``number`` at a time, and yield items with their results as they are done.

    Items are taken in order and no sooner than a thread is free for one. After an error no further item is begun; what is under
    way is finished and yielded, then the first error is raised. One thread is the caller's own. The others are daemons: an
    interrupted program ends at once, without what they are at.
    """
    if number <= 1:
        for item in items:
            yield item, function(item)
        return
    done: queue.SimpleQueue[tuple[Item, Result | None, BaseException | None]] = queue.SimpleQueue()

    def call(item: Item) -> None:
        try:
            done.put((item, function(item), None))
        except BaseException as error:  # it belongs to the caller, whatever it is
            done.put((item, None, error))

    waiting, running, failure = iter(items), 0, None
    while True:
        for item in itertools.islice(waiting, number - running if failure is None else 0):
            threading.Thread(target=call, args=(item,), daemon=True).start()
            running += 1
        if not running:
            break
        item, result, error = done.get()
        running -= 1
        failure = failure or error
        if error is None:
            yield item, result  # type: ignore[misc]
    if failure is not None:
        raise failure
