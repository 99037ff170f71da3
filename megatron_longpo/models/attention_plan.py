"""Which keys each query of a packed sequence sees, as a short list of rectangular blocks. Pure arithmetic.

Every backend agrees on two kinds of block only: unmasked, and causal with as many queries as keys (libraries differ in how
they align a
causal mask of unequal lengths). The planner emits nothing else. Each block is one call of a flash kernel; blocks of the same
queries are merged by their log-sum-exp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from megatron_longpo.parallel.context_parallel import Run, zigzag_runs
from megatron_longpo.parallel.packed_sequence import Chain, ancestors


@dataclasses.dataclass(frozen=True, order=True)
class Block:
    """Queries ``[q_start, q_end)`` against keys ``[k_start, k_end)``, in the coordinates of the local buffers."""

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    causal: bool


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """The blocks of one rank's queries against one buffer of keys."""

    blocks: tuple[Block, ...]

    def score_pairs(self) -> int:
        """Number of query-key pairs that the blocks hold: the work."""
        return sum(_area(block) for block in self.blocks)


def _area(block: Block) -> int:
    queries, keys = block.q_end - block.q_start, block.k_end - block.k_start
    return queries * (queries + 1) // 2 if block.causal else queries * keys


def build_plan(chains: Sequence[Chain], query_runs: Iterable[Run], key_runs: Iterable[Run]) -> AttentionPlan:
    """Plan the attention of the queries in ``query_runs`` to the keys in ``key_runs``.

    Args:
        chains: the whole packed sequence; parents come before their children.
        query_runs: the rows whose queries are in the local buffer.
        key_runs: the rows whose keys are in the key buffer (all rows for an all-gather, one rank's for a ring step).

    Returns:
        Blocks that hold every visible pair exactly once.
    """
    causal: list[Block] = []
    full: list[Block] = []
    key_pieces = _cut(chains, key_runs)
    for query, owner in _cut(chains, query_runs):
        for key, key_owner in key_pieces:
            for start, end in ancestors(chains, owner):
                full += _full(query, key, query.start, query.end, max(start, key.start), min(end, key.end))
            if key_owner == owner:
                diagonal, rest = _causal_overlap(query, key)
                causal += diagonal
                full += rest
    return AttentionPlan(tuple(sorted(causal) + _fuse(full)))


def work_balance(chains: Sequence[Chain], length: int, size: int) -> float:
    """Score pairs of the busiest of ``size`` zigzag ranks over the mean."""
    whole = (Run(0, length, 0),)
    work = [build_plan(chains, zigzag_runs(length, size, rank), whole).score_pairs() for rank in range(size)]
    return max(work) * size / sum(work)


def _cut(chains: Sequence[Chain], runs: Iterable[Run]) -> list[tuple[Run, int]]:
    pieces = []
    for run in runs:
        for index, chain in enumerate(chains):
            start, end = max(run.start, chain.start), min(run.end, chain.end)
            if start < end:
                pieces.append((Run(start, end, run.local_start + start - run.start), index))
    return pieces


def _full(query: Run, key: Run, q_start: int, q_end: int, k_start: int, k_end: int) -> list[Block]:
    if q_start >= q_end or k_start >= k_end:
        return []
    q_shift, k_shift = query.local_start - query.start, key.local_start - key.start
    return [Block(q_start + q_shift, q_end + q_shift, k_start + k_shift, k_end + k_shift, causal=False)]


def _causal_overlap(query: Run, key: Run) -> tuple[list[Block], list[Block]]:
    """Blocks of ``k <= q`` for two runs of one chain: a square on the diagonal, and what lies left of and below it."""
    start, end = max(query.start, key.start), min(query.end, key.end)
    if start >= end:
        return [], _full(query, key, query.start, query.end, key.start, key.end) if key.end <= query.start else []
    (square,) = _full(query, key, start, end, start, end)
    left = _full(query, key, start, query.end, key.start, start)
    below = _full(query, key, end, query.end, start, end)
    return [dataclasses.replace(square, causal=True)], left + below


def _fuse(blocks: list[Block]) -> list[Block]:
    """Join unmasked blocks that touch: the same queries and adjacent keys, or the same keys and adjacent queries.

    Keys are adjacent where they lie side by side in the buffer, whatever their order in the sequence: unmasked attention does
    not know it.
    """
    count = None
    while count != len(blocks):
        count = len(blocks)
        blocks = _join(blocks, lambda block: (block.q_start, block.q_end, block.k_start), _join_keys)
        blocks = _join(blocks, lambda block: (block.k_start, block.k_end, block.q_start), _join_queries)
    return sorted(blocks)


def _join(
    blocks: list[Block], order: Callable[[Block], tuple[int, int, int]], union: Callable[[Block, Block], Block | None]
) -> list[Block]:
    """Join neighbours in an order that puts those that can be joined side by side."""
    joined: list[Block] = []
    for block in sorted(blocks, key=order):
        both = union(joined[-1], block) if joined else None
        if both is None:
            joined.append(block)
        else:
            joined[-1] = both
    return joined


def _join_keys(first: Block, second: Block) -> Block | None:
    same_queries = (first.q_start, first.q_end) == (second.q_start, second.q_end)
    return dataclasses.replace(first, k_end=second.k_end) if same_queries and first.k_end == second.k_start else None


def _join_queries(first: Block, second: Block) -> Block | None:
    same_keys = (first.k_start, first.k_end) == (second.k_start, second.k_end)
    return dataclasses.replace(first, q_end=second.q_end) if same_keys and first.q_end == second.q_start else None
