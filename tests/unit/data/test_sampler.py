"""The order of pairs: a function of seed, weights and position, whatever the layout and however often it is resumed."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.sampler import PreferenceBatchSampler, PreferenceStream, total_samples
from megatron_longpo.data.shuffle import LARGEST_TABLE, Shuffle, permutation, shuffled
from megatron_longpo.data.split import parse_split, split_indices
from megatron_longpo.utils.errors import UserError

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)
WEIGHTS = st.sampled_from([0.1, 0.3, 0.5, 1, 2, 7, 1e-3])


@st.composite
def streams(draw):
    sizes = draw(SIZES)
    weights = draw(st.none() | st.lists(WEIGHTS, min_size=len(sizes), max_size=len(sizes)))
    return PreferenceStream(sizes, weights, draw(st.integers(0, 2**32)))


def entries(stream, number, start=0):
    return [stream.entry(i) for i in range(start, start + number)]


@settings(deadline=None)
@given(streams())
def test_every_epoch_of_every_dataset_is_a_permutation(stream):
    drawn = collections.defaultdict(list)
    for dataset, sample in entries(stream, 150):
        drawn[dataset].append(sample)
    for dataset, samples in drawn.items():
        size = stream.sizes[dataset]
        for epoch in range(len(samples) // size):
            assert sorted(samples[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_each_epoch_has_an_order_of_its_own():
    drawn = [sample for _, sample in entries(PreferenceStream([50], seed=1), 150)]
    assert len({tuple(drawn[start : start + 50]) for start in (0, 50, 100)}) == 3


def test_datasets_of_one_size_have_different_orders():
    drawn = entries(PreferenceStream([50, 50], seed=1), 100)
    orders = [[sample for dataset, sample in drawn if dataset == which] for which in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_another_seed_gives_another_order():
    assert entries(PreferenceStream([50], seed=1), 50) != entries(PreferenceStream([50], seed=2), 50)


@settings(deadline=None)
@given(streams(), st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_an_entry_depends_on_its_position_alone(stream, positions):
    straight = entries(stream, 301)
    fresh = PreferenceStream(stream.sizes, stream.weights, stream.seed)
    assert [fresh.entry(i) for i in positions] == [straight[i] for i in positions]


@settings(deadline=None)
@given(streams(), st.integers(1, 400))
def test_every_beginning_holds_each_dataset_in_its_share(stream, number):
    counts = collections.Counter(stream.draw(i)[0] for i in range(number))
    total = sum(stream.weights)
    for dataset, weight in enumerate(stream.weights):
        share = weight / total
        allowed = 1 if len(stream.sizes) <= 3 else 0.5 + share * len(stream.sizes) / 2
        assert abs(counts[dataset] - number * share) <= allowed + 1e-9


def test_the_mixture_stays_exact_far_into_the_stream():
    stream = PreferenceStream([10, 10, 10], [0.1, 0.2, 0.7])
    start = 10**15
    draws = [stream.draw(start + i) for i in range(1000)]
    assert collections.Counter(dataset for dataset, _ in draws) == {0: 100, 1: 200, 2: 700}
    for which in range(3):
        own = [draw for dataset, draw in draws if dataset == which]
        assert own == list(range(own[0], own[0] + len(own)))


def test_without_weights_datasets_mix_by_size():
    counts = collections.Counter(dataset for dataset, _ in entries(PreferenceStream([30, 10]), 40))
    assert counts == {0: 30, 1: 10}


def test_the_order_does_not_change_between_versions():
    # A checkpoint of today must resume under the NumPy of tomorrow: these numbers may never change.
    assert permutation(10, (1, 42, 0, 0)).tolist() == [1, 3, 5, 8, 4, 9, 7, 2, 6, 0]
    assert entries(PreferenceStream([5, 3], [0.6, 0.4], 42), 8) == [
        (0, 1),
        (1, 0),
        (0, 3),
        (1, 2),
        (0, 4),
        (0, 2),
        (1, 1),
        (0, 0),
    ]

    large = shuffled(10**6, (1, 42, 0, 0))
    assert [large[index] for index in range(4)] == [359316, 204867, 639823, 802709]


@given(st.integers(1, 300), st.integers(0, 2**40))
def test_a_computed_order_is_a_permutation(size, seed):
    order = Shuffle(size, (1, seed))
    assert sorted(order) == list(range(size))
    assert len(order) == size


def test_a_computed_order_is_as_random_as_a_shuffle():
    """No entry stays near its place, neighbours do not stay together, and another key gives another order."""
    size = 50_000
    order = np.array(list(Shuffle(size, (1, 7))))
    rank_correlation = np.corrcoef(order, np.arange(size))[0, 1]
    assert abs(rank_correlation) < 5 / size**0.5
    assert np.abs(np.diff(order)).mean() == pytest.approx(size / 3, rel=0.02)
    assert (order == np.arange(size)).sum() < 8
    assert (order == np.array(list(Shuffle(size, (1, 8))))).sum() < 8


def test_a_large_order_is_computed_and_a_small_one_is_held():
    assert isinstance(shuffled(LARGEST_TABLE, (1,)), np.ndarray)
    large = shuffled(LARGEST_TABLE + 1, (1,))
    assert sorted(large) == list(range(LARGEST_TABLE + 1))


def sampler(stream, batch, micro=1, rank=0, size=1, consumed=0, total=240):
    return PreferenceBatchSampler(stream, batch, micro, rank, size, consumed, total)


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def run(stream, batch, micro, size, consumed=0, total=240):
    """The entries of each global batch, put together from all ranks."""
    ranks = [list(sampler(stream, batch, micro, rank, size, consumed, total)) for rank in range(size)]
    rounds = [flat(parts) for parts in zip(*ranks, strict=True)]
    per_batch = batch // (micro * size)
    return [flat(rounds[i : i + per_batch]) for i in range(0, len(rounds), per_batch)]


LAYOUTS = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))


@settings(deadline=None, max_examples=40)
@given(streams(), LAYOUTS)
def test_the_global_batches_do_not_depend_on_the_layout(stream, layout):
    micro, size, accumulation = layout
    batch = micro * size * accumulation
    expected = [entries(stream, batch, start) for start in range(0, 240 // batch * batch, batch)]
    assert run(stream, batch, micro, size) == expected


@settings(deadline=None, max_examples=40)
@given(streams(), LAYOUTS, st.integers(0, 240))
def test_a_resumed_run_in_any_layout_goes_on_where_the_first_stopped(stream, layout, consumed):
    micro, size, accumulation = layout
    batch = micro * size * accumulation
    resumed = run(PreferenceStream(stream.sizes, stream.weights, stream.seed), batch, micro, size, consumed)
    number = (240 - consumed) // batch * batch
    assert flat(resumed) == entries(stream, number, consumed)


def test_nothing_is_replayed_after_a_resume_at_the_end_of_an_epoch():
    stream = PreferenceStream([12], seed=3)
    first = flat(run(stream, 4, 1, 2, total=8))
    then = flat(run(stream, 4, 2, 1, consumed=8, total=24))
    assert sorted(first + then[:4]) == [(0, i) for i in range(12)]
    assert sorted(then[4:]) == [(0, i) for i in range(12)]


@given(st.integers(1, 5))
def test_a_saved_state_goes_on_in_another_layout(batches):
    stream = PreferenceStream([7, 9], [0.5, 0.5], 11)
    straight = run(stream, 8, 1, 1, total=64)
    first = sampler(stream, 8, 2, 1, 2, total=64)
    for _, _ in zip(range(2 * batches), first, strict=False):
        pass
    assert first.state_dict()["consumed_samples"] == 8 * batches
    second = sampler(PreferenceStream([7, 9], [0.5, 0.5], 11), 8, 1, 0, 1, total=64)
    second.load_state_dict(first.state_dict())
    assert len(second) == 64 - 8 * batches
    assert flat(second) == flat(straight[batches:])


def test_an_incomplete_batch_is_not_counted():
    first = sampler(PreferenceStream([20]), 8, 2, total=64)
    taken = iter(first)
    for _ in range(3):
        next(taken)
    assert first.consumed_samples == 0
    next(taken)
    assert first.consumed_samples == 8


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (PreferenceStream([7, 8]), "sizes"),
        (PreferenceStream([7, 9], [1, 2]), "weights"),
        (PreferenceStream([7, 9], seed=1), "seed"),
    ],
)
def test_a_state_of_another_stream_is_refused(other, name):
    state = sampler(PreferenceStream([7, 9]), 8).state_dict()
    with pytest.raises(UserError, match=f"the data order cannot be resumed: {name} was"):
        sampler(other, 8).load_state_dict(state)


def test_a_length_in_whole_batches():
    assert total_samples(30, 8) == 24
    assert total_samples(30, 8, drop_last=False) == 32
    assert total_samples(32, 8) == total_samples(32, 8, drop_last=False) == 32
    assert total_samples(2.5 * 10, 8) == 24
    with pytest.raises(UserError, match="7 pairs do not fill one --global-batch-size of 8"):
        total_samples(7, 8)


def test_wrapping_fills_the_last_batch_from_the_next_epoch():
    batches = run(PreferenceStream([10]), 8, 1, 1, total=total_samples(10, 8, drop_last=False))
    assert [len(batch) for batch in batches] == [8, 8]
    assert len(set(flat(batches)[:10])) == 10


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PreferenceStream([]), "non-empty datasets"),
        (lambda: PreferenceStream([3, 0]), "non-empty datasets"),
        (lambda: PreferenceStream([3], [1, 2]), "one weight each"),
        (lambda: PreferenceStream([3, 3], [1, 0]), "must be positive"),
        (lambda: PreferenceStream([3], [float("nan")]), "must be positive"),
        (lambda: sampler(PreferenceStream([3]), 8, 3), "must be a multiple of --micro-batch-size 3 .*the next one is 9"),
        (lambda: sampler(PreferenceStream([3]), 0), "must be at least 1"),
        (lambda: sampler(PreferenceStream([3]), 8, consumed=241), "241 pairs are consumed already, the training ends at 240"),
    ],
)
def test_what_cannot_work_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build()


@given(st.integers(0, 200), st.sampled_from(["100,0", "99,1", "50,50", "1,2"]), st.integers(0, 2**40))
def test_a_split_is_disjoint_complete_and_stable(number, split, seed):
    train, validation = split_indices(number, split, seed)
    assert sorted([*train, *validation]) == list(range(number))
    again = split_indices(number, split, seed)
    assert np.array_equal(train, again[0])
    assert np.array_equal(validation, again[1])
    shares = parse_split(split)
    if number > 1 and shares[1]:
        assert len(train) > 0
        assert len(validation) > 0
        assert abs(len(validation) - number * shares[1] / sum(shares)) <= 1
    if not shares[1]:
        assert len(validation) == 0


def test_another_seed_splits_otherwise():
    assert not np.array_equal(split_indices(100, "50,50", 1)[0], split_indices(100, "50,50", 2)[0])


def test_the_training_split_does_not_change_between_versions():
    train, validation = split_indices(12, "3,1", 42)
    assert (list(train), validation.tolist()) == ([0, 2, 3, 5, 6, 7, 8, 9, 11], [1, 4, 10])
    assert train[0] == next(iter(train)) == 0
    for outside in (-1, len(train)):
        with pytest.raises(IndexError):
            train[outside]


@pytest.mark.parametrize("split", ["", "1", "a,b", "0,1", "-1,2", "98,1,1", "nan,1"])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(UserError, match="--split"):
        parse_split(split)
