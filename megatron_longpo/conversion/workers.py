"""The processes that share a conversion: one under plain ``python``, several under ``torchrun``."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

_T = TypeVar("_T")
_TIMEOUT = datetime.timedelta(hours=2)  # the others wait while one process writes the last of a large model


class Workers:
    """This process among those that share the work. Parallel: every method but `share` must be called by all of them."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """Describe the process; use `join_workers` to make one."""
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def gather(self, value: _T) -> list[_T]:
        """Every process's value, in rank order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[_T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def first(self, value: _T) -> _T:
        """The first process's value, on all of them."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def share(self, sizes: list[int]) -> list[int]:
        """Indices of the items that this process handles: largest first, each to the least loaded, then in their own order."""
        loads = [0] * self.size
        mine = []
        for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
            rank = loads.index(min(loads))
            loads[rank] += sizes[index]
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)


@contextmanager
def join_workers() -> Iterator[Workers]:
    """Join the other processes (gloo: conversion never needs a GPU) where ``torchrun`` started several; leave them at the end."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Workers()
        return
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Workers(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def say(message: str, workers: Workers) -> None:
    """Tell the user something once, beside the progress bar."""
    if workers.is_first:
        print(message, file=sys.stderr)
