"""Which pairs of a global batch share a micro-batch, and which data-parallel rank gets it: equal work for every rank.

A plan is a function of the batch's pairs, the number of ranks and the budget alone, so every rank computes the same one and
takes its own part. Attention makes work grow with the square of a length: ranks with equal tokens can differ by a factor.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterable, Sequence

MicroBatch = tuple[int, ...]
"""Positions in the global batch."""


@dataclasses.dataclass(frozen=True)
class PairSize:
    """What a pair costs.

    Attributes:
        rows: packed rows.
        work: what computing it takes, in any whole unit.
    """

    rows: int
    work: int


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """A global batch divided.

    Attributes:
        ranks: the micro-batches of each data-parallel rank; every rank has the same number of them.
        work: of each rank.
    """

    ranks: tuple[tuple[MicroBatch, ...], ...]
    work: tuple[int, ...]

    @property
    def balance(self) -> float:
        """Work of the busiest rank over the mean: the factor by which ranks wait for each other."""
        return max(self.work) * len(self.work) / max(sum(self.work), 1)


def plan_batch(pairs: Sequence[PairSize], num_ranks: int, max_rows: int, multiple: int = 1) -> BatchPlan:
    """Divide a global batch by work.

    Pairs go, heaviest first, to the rank with the least work so far (the longest-processing-time rule). A plan in which each
    rank takes every ``num_ranks``-th pair, as without packing, is kept where it is better.

    Args:
        pairs: of the global batch, in the order of the run; a multiple of ``num_ranks * multiple`` of them.
        num_ranks: data-parallel size.
        max_rows: rows of a micro-batch; a pair with more stands alone.
        multiple: the number of micro-batches of a rank is a multiple of it (an interleaved pipeline wants that).

    Returns:
        A plan in which each pair occurs once, no micro-batch is empty, and the number of micro-batches is the lowest for
        which ranks could be filled in this way.

    Raises:
        ValueError: the number of pairs is not such a multiple: the ranks could not always have equally many micro-batches.
    """
    if not pairs or len(pairs) % (num_ranks * multiple):
        raise ValueError(f"{len(pairs)} pairs are not a multiple of {num_ranks} ranks times {multiple} micro-batches")
    most = len(pairs) // num_ranks
    fewest = max(1, -(-sum(min(pair.rows, max_rows) for pair in pairs) // max(num_ranks * max_rows, 1)))
    counts = range(min(-(-fewest // multiple) * multiple, most), most + 1, multiple)
    rotating = [list(range(rank, len(pairs), num_ranks)) for rank in range(num_ranks)]
    plans = (
        _lowest_count(pairs, lambda count: _assign(pairs, num_ranks, count), counts, max_rows),
        _lowest_count(pairs, lambda _: rotating, counts, max_rows),
    )
    return min(plans, key=lambda plan: (max(plan.work), len(plan.ranks[0])))


def pack_in_order(rows: Sequence[int], max_rows: int) -> list[MicroBatch]:
    """Fill micro-batches with pairs of so many rows as they come; one of more than ``max_rows`` stands alone."""
    filled: list[list[int]] = []
    taken = 0
    for index, more in enumerate(rows):
        taken += more
        if not filled or taken > max_rows:
            filled.append([])
            taken = more
        filled[-1].append(index)
    return [tuple(micro_batch) for micro_batch in filled]


def _lowest_count(
    pairs: Sequence[PairSize], assign: Callable[[int], list[list[int]]], counts: Iterable[int], max_rows: int
) -> BatchPlan:
    """The first number of micro-batches whose assignment fits; the last number, one pair in each, always does."""
    for count in counts:
        ranks = []
        for chosen in assign(count):
            filled = _fill(pairs, chosen, count, max_rows)
            if filled is None:
                break
            ranks.append(filled)
        else:
            work = (sum(pairs[index].work for micro_batch in filled for index in micro_batch) for filled in ranks)
            return BatchPlan(tuple(ranks), tuple(work))
    raise AssertionError("one pair in each micro-batch always fits")


def _assign(pairs: Sequence[PairSize], num_ranks: int, at_least: int) -> list[list[int]]:
    """Pairs of each rank, heaviest first to the least loaded; the lightest are kept for ranks with less than ``at_least``."""
    chosen: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    lacking = num_ranks * at_least
    order = sorted(range(len(pairs)), key=lambda index: (-pairs[index].work, index))
    for place, index in enumerate(order):
        if lacking == len(pairs) - place:
            loads = [(load, rank) for load, rank in loads if len(chosen[rank]) < at_least]
            heapq.heapify(loads)
        load, rank = loads[0]
        lacking -= len(chosen[rank]) < at_least
        chosen[rank].append(index)
        heapq.heapreplace(loads, (load + pairs[index].work, rank))
    return chosen


def _fill(pairs: Sequence[PairSize], chosen: Sequence[int], count: int, max_rows: int) -> tuple[MicroBatch, ...] | None:
    """Divide a rank's pairs into ``count`` micro-batches of even rows; None where they do not fit.

    Short pairs come first in a micro-batch: context ranks hold an early and a late part of it, and among orders that need no
    search this one divides the work best between them.
    """
    micro_batches: list[list[int]] = [[] for _ in range(count)]
    rows = [0] * count
    for index in sorted(chosen, key=lambda index: (-pairs[index].rows, index)):
        emptiest = min(range(count), key=rows.__getitem__)
        if micro_batches[emptiest] and rows[emptiest] + pairs[index].rows > max_rows:
            return None
        micro_batches[emptiest].append(index)
        rows[emptiest] += pairs[index].rows
    return tuple(tuple(reversed(micro_batch)) for micro_batch in micro_batches)
