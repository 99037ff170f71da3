"""Laws of a plan: every pair once, within the budget, equally many micro-batches for each rank, and work divided well."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.batch_planning import PairSize, pack_in_order, plan_batch


def pair(rows: int) -> PairSize:
    """A pair whose work grows as attention's does."""
    return PairSize(rows, 50 * rows + rows * rows)


@st.composite
def batches(draw, most_ranks=4, most_rounds=6):
    ranks, multiple = draw(st.integers(1, most_ranks)), draw(st.integers(1, 3))
    count = ranks * multiple * draw(st.integers(1, max(1, most_rounds // multiple)))
    rows = st.lists(st.integers(1, 20) | st.integers(1, 300), min_size=count, max_size=count)
    return [pair(length) for length in draw(rows)], ranks, draw(st.integers(1, 400)), multiple


@settings(deadline=None, max_examples=300)
@given(batches())
def test_every_pair_is_taken_once_within_the_budget_and_every_rank_has_equally_many_micro_batches(batch):
    pairs, ranks, budget, multiple = batch
    plan = plan_batch(pairs, ranks, budget, multiple)
    micro_batches = [micro_batch for rank in plan.ranks for micro_batch in rank]
    assert sorted(itertools.chain.from_iterable(micro_batches)) == list(range(len(pairs)))
    assert all(micro_batches)
    for micro_batch in micro_batches:
        assert len(micro_batch) == 1 or sum(pairs[index].rows for index in micro_batch) <= budget
    assert len(plan.ranks) == ranks
    (count,) = {len(rank) for rank in plan.ranks}
    assert count % multiple == 0
    assert plan.work == tuple(sum(pairs[i].work for micro_batch in rank for i in micro_batch) for rank in plan.ranks)


@settings(deadline=None, max_examples=300)
@given(batches(most_ranks=8, most_rounds=8))
def test_the_busiest_rank_is_never_busier_than_without_planning(batch):
    pairs, ranks, budget, multiple = batch
    naive = max(sum(one.work for one in pairs[rank::ranks]) for rank in range(ranks))
    assert max(plan_batch(pairs, ranks, budget, multiple).work) <= naive


def test_the_usual_order_is_kept_where_it_is_better():
    """Heaviest first: 4 3 3 on one rank and 4 3 1 on the other. In turn: 1 4 4 and 3 3 3."""
    assert plan_batch([PairSize(work, work) for work in (1, 3, 4, 3, 4, 3)], 2, 100).work == (9, 9)


@settings(deadline=None, max_examples=300)
@given(batches(most_ranks=8, most_rounds=8))
def test_with_room_for_all_ranks_differ_by_less_than_one_pair(batch):
    """The bound of list scheduling: the last pair of the busiest rank was put where the work was least."""
    pairs, ranks, _, _ = batch
    plan = plan_batch(pairs, ranks, sum(one.rows for one in pairs))
    assert max(plan.work) <= sum(plan.work) / ranks + max(one.work for one in pairs) * (1 - 1 / ranks) + 1e-6


@settings(deadline=None, max_examples=60)
@given(batches(most_ranks=3, most_rounds=2))
def test_a_plan_is_within_a_third_of_the_best_that_exists(batch):
    """The longest-processing-time rule's bound, 4/3 of the optimum, against all divisions."""
    pairs, ranks, _, _ = batch
    best = min(
        max(sum(one.work for one, owner in zip(pairs, owners, strict=True) if owner == rank) for rank in range(ranks))
        for owners in itertools.product(range(ranks), repeat=len(pairs))
        if len(set(owners)) == ranks
    )
    assert max(plan_batch(pairs, ranks, sum(one.rows for one in pairs)).work) <= 4 / 3 * best


def test_lengths_as_they_occur_are_divided_almost_evenly():
    """Sixty-four pairs of 8,000 to 64,000 tokens on eight ranks."""
    lengths = [int(8000 * 8 ** (index * 29 % 64 / 63)) for index in range(64)]
    pairs = [PairSize(length, length**2) for length in lengths[:24] + sorted(lengths[24:])]
    naive = [sum(one.work for one in pairs[rank::8]) for rank in range(8)]
    assert max(naive) / (sum(naive) / 8) > 1.2
    assert plan_batch(pairs, 8, 128_000).balance < 1.02


def test_short_pairs_come_first_in_a_micro_batch():
    (rank,) = plan_batch([pair(rows) for rows in (30, 50, 10, 20, 40)], 1, 1000).ranks
    assert rank == ((2, 3, 0, 4, 1),)


def test_a_plan_uses_as_few_micro_batches_as_the_budget_allows():
    pairs = [pair(10)] * 16
    assert [len(plan_batch(pairs, 2, budget).ranks[0]) for budget in (1, 10, 20, 40, 80, 1000)] == [8, 8, 4, 2, 1, 1]
    assert [len(plan_batch(pairs, 2, budget, multiple=4).ranks[0]) for budget in (10, 20, 40, 1000)] == [8, 4, 4, 4]


def test_work_counts_and_not_rows():
    """One long pair costs more than many short ones of as many rows."""
    plan = plan_batch([pair(400), *[pair(40)] * 11], 2, 1000)
    long, short = (next(rank for rank in plan.ranks if (0 in rank[0]) is has_long) for has_long in (True, False))
    assert sum(map(len, long)) < sum(map(len, short))


def test_a_rank_with_a_long_pair_gets_as_many_micro_batches_as_the_others():
    plan = plan_batch([pair(1000), *[pair(60)] * 9], 2, 100)
    assert {len(rank) for rank in plan.ranks} == {5}
    assert (0,) in [micro_batch for rank in plan.ranks for micro_batch in rank]


@pytest.mark.parametrize(("count", "ranks", "multiple"), [(0, 1, 1), (3, 2, 1), (1, 2, 1), (6, 2, 2)])
def test_a_batch_that_cannot_be_divided_is_refused(count, ranks, multiple):
    with pytest.raises(ValueError, match="are not a multiple of"):
        plan_batch([pair(5)] * count, ranks, 10, multiple)


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(1, 12))
def test_packing_in_order_keeps_the_order_and_the_budget(rows, budget):
    micro_batches = pack_in_order(rows, budget)
    assert list(itertools.chain.from_iterable(micro_batches)) == list(range(len(rows)))
    for micro_batch, following in itertools.zip_longest(micro_batches, micro_batches[1:]):
        taken = sum(rows[index] for index in micro_batch)
        assert len(micro_batch) == 1 or taken <= budget
        assert following is None or taken + rows[following[0]] > budget
