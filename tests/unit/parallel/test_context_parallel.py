"""Zigzag sharding loses nothing and puts everything back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.parallel.context_parallel import sequence_multiple, zigzag_join, zigzag_runs, zigzag_slice, zigzag_split

sizes = st.tuples(st.integers(1, 8), st.integers(1, 5))


@given(sizes)
def test_slices_of_all_ranks_join_to_the_whole(case: tuple[int, int]) -> None:
    cp, chunk = case
    whole = torch.arange(2 * cp * chunk * 3).view(2 * cp * chunk, 3)
    shards = torch.stack([zigzag_slice(whole, cp, rank) for rank in range(cp)])
    assert torch.equal(zigzag_join(shards), whole)
    assert torch.equal(zigzag_split(whole, cp), shards)


@given(sizes)
def test_runs_say_where_each_row_of_a_slice_comes_from(case: tuple[int, int]) -> None:
    cp, chunk = case
    whole = torch.arange(2 * cp * chunk)
    for rank in range(cp):
        shard = zigzag_slice(whole, cp, rank)
        for run in zigzag_runs(len(whole), cp, rank):
            assert shard[run.local_start : run.local_start + run.end - run.start].tolist() == list(range(run.start, run.end))


def test_a_rank_holds_an_early_and_a_late_chunk() -> None:
    assert zigzag_slice(torch.arange(16), 2, 0).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_a_length_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide into 2 \\* cp = 4 chunks"):
        zigzag_runs(10, 2, 0)


@pytest.mark.parametrize(("cp", "tp", "sp", "multiple"), [(1, 1, False, 1), (1, 2, True, 2), (2, 2, True, 8), (2, 2, False, 4)])
def test_padding_suits_context_and_sequence_parallelism(cp: int, tp: int, sp: bool, multiple: int) -> None:
    assert sequence_multiple(cp, tp, sequence_parallel=sp) == multiple
