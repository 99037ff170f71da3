"""The planner holds every visible pair of query and key exactly once, whatever is packed and however it is sharded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.models.attention_plan import AttentionPlan, build_plan, work_balance
from megatron_longpo.parallel.context_exchange import gathered_runs
from megatron_longpo.parallel.context_parallel import Run, zigzag_runs
from megatron_longpo.parallel.packed_sequence import Chain, ancestors, chain_positions


def dense_mask(chains: tuple[Chain, ...]) -> np.ndarray:
    """The mask from its definition, row by row."""
    total = chains[-1].end
    mask = np.zeros((total, total), dtype=bool)
    for index, chain in enumerate(chains):
        for row in range(chain.start, chain.end):
            mask[row, chain.start : row + 1] = True
            seen, attach = chain.parent, chain.attach
            while seen is not None:
                mask[row, chains[seen].start : chains[seen].start + attach] = True
                seen, attach = chains[seen].parent, chains[seen].attach
        assert index >= 0
    return mask


def painted(plan: AttentionPlan, queries: int, keys: int) -> np.ndarray:
    """How often each pair is held by the blocks."""
    counts = np.zeros((queries, keys), dtype=int)
    for block in plan.blocks:
        shape = (block.q_end - block.q_start, block.k_end - block.k_start)
        counts[block.q_start : block.q_end, block.k_start : block.k_end] += (
            np.tril(np.ones(shape, dtype=int)) if block.causal else np.ones(shape, dtype=int)
        )
    return counts


@st.composite
def packed_sequences(draw: st.DrawFn, multiple: int = 1) -> tuple[Chain, ...]:
    chains: list[Chain] = []
    start = 0
    for index in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 14))
        parent = draw(st.one_of(st.none(), st.integers(0, index - 1))) if index else None
        attach = 0 if parent is None else draw(st.integers(0, chains[parent].length))
        chains.append(Chain(start, length, parent, attach))
        start += length
    padding = -start % multiple
    if padding:
        chains.append(Chain(start, padding))
    return tuple(chains)


def rows_of(runs: tuple[Run, ...]) -> np.ndarray:
    return np.concatenate([np.arange(run.start, run.end) for run in runs])


@given(packed_sequences())
def test_one_rank_holds_the_mask_exactly(chains: tuple[Chain, ...]) -> None:
    whole = (Run(0, chains[-1].end, 0),)
    plan = build_plan(chains, whole, whole)
    assert np.array_equal(painted(plan, chains[-1].end, chains[-1].end), dense_mask(chains).astype(int))
    assert plan.score_pairs() == dense_mask(chains).sum()


@settings(max_examples=60)
@given(st.sampled_from([2, 3, 4]).flatmap(lambda cp: st.tuples(st.just(cp), packed_sequences(2 * cp))))
def test_gathered_keys_hold_each_rank_s_rows_of_the_mask(case: tuple[int, tuple[Chain, ...]]) -> None:
    cp, chains = case
    total, mask = chains[-1].end, dense_mask(chains)
    for rank in range(cp):
        runs = zigzag_runs(total, cp, rank)
        keys = gathered_runs(total, cp)
        plan = build_plan(chains, runs, keys)
        assert np.array_equal(painted(plan, total // cp, total), mask[rows_of(runs)][:, rows_of(keys)].astype(int))


@settings(max_examples=60)
@given(st.sampled_from([2, 3]).flatmap(lambda cp: st.tuples(st.just(cp), packed_sequences(2 * cp))))
def test_ring_steps_together_hold_each_rank_s_rows_of_the_mask(case: tuple[int, tuple[Chain, ...]]) -> None:
    cp, chains = case
    total, mask = chains[-1].end, dense_mask(chains)
    for rank in range(cp):
        queries = zigzag_runs(total, cp, rank)
        for source in range(cp):
            keys = zigzag_runs(total, cp, source)
            plan = build_plan(chains, queries, keys)
            expected = mask[rows_of(queries)][:, rows_of(keys)].astype(int)
            assert np.array_equal(painted(plan, total // cp, total // cp), expected)


@given(packed_sequences())
def test_causal_blocks_are_square(chains: tuple[Chain, ...]) -> None:
    whole = (Run(0, chains[-1].end, 0),)
    for block in build_plan(chains, whole, whole).blocks:
        if block.causal:
            assert block.q_end - block.q_start == block.k_end - block.k_start


def test_a_preference_pair_is_three_blocks() -> None:
    chains = (Chain(0, 120), Chain(120, 30, parent=0, attach=99))
    whole = (Run(0, 150, 0),)
    assert len(build_plan(chains, whole, whole).blocks) == 3


@pytest.mark.parametrize(("length", "answer", "cp"), [(131072, 512, 8), (131072, 512, 32), (32768, 512, 8)])
def test_zigzag_gives_every_rank_the_same_work(length: int, answer: int, cp: int) -> None:
    trunk = length + answer
    tail = -(trunk + answer + 1) % (2 * cp) + answer + 1
    chains = (Chain(0, trunk), Chain(trunk, tail, parent=0, attach=length - 1))
    total = trunk + tail
    assert 1 <= work_balance(chains, total, cp) < 1.001


def test_work_balance_is_the_busiest_rank_s_share_of_the_mask() -> None:
    chains = (Chain(0, 17), Chain(17, 7, parent=0, attach=9))
    rows = [dense_mask(chains)[rows_of(zigzag_runs(24, 3, rank))].sum() for rank in range(3)]
    assert work_balance(chains, 24, 3) == max(rows) * 3 / sum(rows)


def test_positions_go_on_where_a_chain_is_attached() -> None:
    chains = (Chain(0, 10), Chain(10, 4, parent=0, attach=6), Chain(14, 2, parent=1, attach=3), Chain(16, 3))
    assert [list(positions) for positions in chain_positions(chains)[1:]] == [[6, 7, 8, 9], [9, 10], [0, 1, 2]]
    assert ancestors(chains, 2) == [(0, 6), (10, 13)]
