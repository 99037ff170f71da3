import itertools
import json
import random
import statistics as stdlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.generation.measures import FEWEST_BINS, MOST_BINS, Distribution, Sample
from megatron_longpo.generation.statistics import (
    ANSWER_CHARACTERS,
    EXCERPT_CHARACTERS,
    NUM_DROPPED_SAMPLES,
    NUM_SAMPLES,
    collect,
    group_drops,
    shorten,
)
from tests.support.generated_records import REASONS, make_dropped, make_record

NUMBERS = st.lists(st.integers(-(10**9), 10**9) | st.integers(0, 3000), min_size=1, max_size=60)
RECORDS = [make_record(number) for number in range(60)]
DROPPED = [make_dropped(number) for number in range(60)]
DROPS = {"turn: identical answers": 20, "chunk: question too long": 3, "document: no turn left": 1, "turn: refusal": 20}


def turns_of(records: list[dict]) -> Iterator[tuple[dict, dict]]:
    for record in records:
        yield from zip(record["turns"], record["metadata"]["turns"], strict=True)


@given(NUMBERS, st.randoms(use_true_random=False))
def test_a_distribution_is_that_of_its_values_in_any_order(values: list[int], rng: random.Random) -> None:
    spread = Distribution("tokens")
    for value in values:
        spread.add(value)
    summary = spread.summary()
    assert summary["count"] == len(values)
    assert (summary["minimum"], summary["maximum"]) == (min(values), max(values))
    assert summary["mean"] == sum(values) / len(values)
    assert summary["median"] == pytest.approx(stdlib.median_low(values), rel=2 / 1024)
    shuffled = Distribution("tokens")
    for value in rng.sample(values, len(values)):
        shuffled.add(value)
    assert shuffled.summary() == summary


@given(st.lists(st.integers(-1023, 1023), min_size=1, max_size=60))
def test_small_numbers_are_counted_exactly(values: list[int]) -> None:
    spread = Distribution("tokens")
    for value in values:
        spread.add(value)
    summary = spread.summary()
    assert summary["median"] == stdlib.median_low(values)
    bins = itertools.pairwise(summary["edges"])
    assert summary["counts"] == [sum(start <= value < end for value in values) for start, end in bins]


@given(NUMBERS)
def test_a_histogram_has_few_bins_of_one_round_width(values: list[int]) -> None:
    spread = Distribution("tokens")
    for value in values:
        spread.add(value)
    summary = spread.summary()
    assert sum(summary["counts"]) == len(values)
    assert 1 <= len(summary["counts"]) <= min(MOST_BINS, max(FEWEST_BINS, 2 * len(values) ** 0.5))
    assert summary["counts"][0] > 0 < summary["counts"][-1]
    (width,) = {end - start for start, end in itertools.pairwise(summary["edges"])}
    assert str(width).rstrip("0") in ("1", "2", "5")
    assert all(edge % width == 0 for edge in summary["edges"])


def test_fractions_are_counted_in_steps_of_a_unit() -> None:
    spread = Distribution("nats", scale=1000)
    for value in (-1.5, 0.0004, 0.25):
        spread.add(value)
    summary = spread.summary()
    assert (summary["minimum"], summary["median"], summary["maximum"], summary["unit"]) == (-1.5, 0.0, 0.25, "nats")
    assert summary["mean"] == pytest.approx(-1.25 / 3)


def test_a_distribution_of_nothing_is_none() -> None:
    assert Distribution("tokens").summary() is None


@given(st.sets(st.text(max_size=5), max_size=60), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_sample_depends_on_names_and_not_on_their_order(names: set[str], size: int, rng: random.Random) -> None:
    everything, first, second = Sample(10**6), Sample(size), Sample(size)
    for name in names:
        everything.offer((name, 1), lambda name=name: name)
    for sample, order in ((first, sorted(names)), (second, rng.sample(sorted(names), len(names)))):
        for name in order:
            sample.offer((name, 1), lambda name=name: name)
    assert first.values() == second.values() == everything.values()[:size]


def test_a_sample_makes_only_what_may_stay() -> None:
    made = []
    sample = Sample(5)
    for number in range(10000):
        sample.offer((number,), lambda number=number: made.append(number) or number)
    assert len(sample.values()) == 5
    assert len(made) < 300


def test_counts_and_lengths_are_those_of_the_records() -> None:
    found = collect(RECORDS, DROPPED, DROPS, {"seconds": 3})
    turns = list(turns_of(RECORDS))
    assert (found["records"], found["turns"], found["dropped_turns"]) == (len(RECORDS), len(turns), len(DROPPED))
    assert found["parts"] == sum(number % 3 > 0 for number in range(60))
    per_record = [len(record["turns"]) for record in RECORDS]
    assert found["turns_per_record"] == {str(n): per_record.count(n) for n in sorted(set(per_record))}
    expected = {
        "document": [record["metadata"]["document_tokens"] for record in RECORDS],
        "chunk": [about["chunk_tokens"] for _, about in turns],
        "question": [about["question_tokens"] for _, about in turns],
        "chosen": [about["tokens_chosen"] for _, about in turns],
        "rejected": [about["tokens_rejected"] for _, about in turns],
    }
    assert found["lengths"].keys() == expected.keys()
    for name, values in expected.items():
        spread = found["lengths"][name]
        assert (spread["count"], spread["mean"], spread["unit"]) == (len(values), sum(values) / len(values), "tokens")
    pairs = [[about["tokens_chosen"], about["tokens_rejected"]] for _, about in turns]
    assert found["answer_lengths"] == sorted(pairs)
    assert found["longer"]["chosen"] == sum(chosen > rejected for chosen, rejected in pairs)
    assert sum(found["longer"].values()) == len(turns)
    assert found["cut_off"] == {
        side: sum(about[f"finish_reason_{side}"] == "length" for _, about in turns) for side in ("chosen", "rejected")
    }
    assert found["run"] == {"seconds": 3}


def test_verdicts_and_margins_are_counted_where_there_are_any() -> None:
    found = collect(RECORDS, [], {}, {})
    abouts = [about for _, about in turns_of(RECORDS)]
    assert found["verifier"]["judged"] == len(abouts)
    assert found["verifier"]["chosen_answers"] == sum(about["verified_chosen"] for about in abouts)
    assert found["verifier"]["rejected_better"] == sum(not about["verified_better"] for about in abouts)
    assert found["margins"]["positive"] == sum(about["logprob_margin"] > 0 for about in abouts)
    assert found["margins"]["mean"] == pytest.approx(sum(about["logprob_margin"] for about in abouts) / len(abouts), abs=1e-3)
    unchecked = collect([make_record(number, checked=False) for number in range(9)], [], {}, {})
    assert unchecked["verifier"] is None
    assert unchecked["margins"] is None


def test_an_undecided_verifier_is_counted_as_such() -> None:
    record = make_record(1, checked=False)
    record["metadata"]["turns"][0]["verified_chosen"] = True
    verifier = collect([record], [], {}, {})["verifier"]
    assert (verifier["judged"], verifier["chosen_answers"], verifier["better_undecided"]) == (1, 1, 1)
    assert verifier["chosen_better"] == verifier["rejected_better"] == 0


def test_a_margin_that_is_no_number_is_counted_apart() -> None:
    record = make_record(3)
    record["metadata"]["turns"][0]["logprob_margin"] = float("-inf")
    margins = collect([record, *RECORDS], [], {}, {})["margins"]
    assert margins["not_finite"] == 1
    assert margins["count"] == sum(len(each["turns"]) for each in [record, *RECORDS]) - 1


@settings(max_examples=12)
@given(st.randoms(use_true_random=False))
def test_the_order_of_records_and_of_dropped_turns_changes_nothing(rng: random.Random) -> None:
    expected = collect(RECORDS, DROPPED, DROPS, {})
    drops = dict(rng.sample(sorted(DROPS.items()), len(DROPS)))
    assert collect(rng.sample(RECORDS, len(RECORDS)), rng.sample(DROPPED, len(DROPPED)), drops, {}) == expected


def test_samples_are_turns_of_the_records() -> None:
    samples = collect(RECORDS, [], {}, {})["samples"]
    assert len(samples) == NUM_SAMPLES
    by_id = {record["document_id"]: record for record in RECORDS}
    for sample in samples:
        record = by_id[sample["document_id"]]
        turn, about = record["turns"][sample["chunk_id"]], record["metadata"]["turns"][sample["chunk_id"]]
        assert sample["question"] == about["question"]
        assert sample["chosen"] == shorten(turn["chosen"], ANSWER_CHARACTERS)
        assert sample["rejected"] == shorten(turn["rejected"], ANSWER_CHARACTERS)
        assert sample["excerpt"] == shorten(turn["short_context"], EXCERPT_CHARACTERS)
        assert sample["tokens_chosen"] == about["tokens_chosen"]
        assert sample["logprob_margin"] == about["logprob_margin"]


def test_dropped_samples_show_every_reason() -> None:
    samples = collect([], DROPPED, {}, {})["dropped_samples"]
    assert len(samples) == NUM_DROPPED_SAMPLES
    assert [sample["reason"] for sample in samples] == sorted(REASONS) * (NUM_DROPPED_SAMPLES // len(REASONS))
    rows = [{name: row[name] for name in samples[0]} for row in DROPPED]
    assert all(sample in rows for sample in samples)


def test_drops_are_grouped_by_level_the_most_frequent_first() -> None:
    grouped = group_drops({**DROPS, "something else": 2})
    assert grouped == {
        "document": {"no turn left": 1},
        "chunk": {"question too long": 3},
        "turn": {"identical answers": 20, "refusal": 20},
        "other": {"something else": 2},
    }
    assert list(grouped["turn"]) == ["identical answers", "refusal"]
    assert list(group_drops({"turn: a: b": 1, "turn: c": 5})["turn"]) == ["c", "a: b"]


def test_what_the_metadata_does_not_tell_is_left_out() -> None:
    record = make_record(1)
    del record["metadata"]
    found = collect([record], [], {}, {})
    assert found["lengths"] == {}
    assert found["answer_lengths"] == []
    assert found["turns"] == len(record["turns"])
    assert found["samples"][0]["question"] == record["turns"][0]["instruction"] or len(record["turns"]) > 1


@given(st.text(max_size=300), st.integers(6, 200))
def test_a_shortened_text_tells_how_much_it_lacks(text: str, limit: int) -> None:
    short = shorten(text, limit)
    if len(text) <= limit:
        assert short == text
        return
    start, _, rest = short.partition(" [... ")
    missing, _, end = rest.partition(" characters ...] ")
    if " [... " not in text:
        assert text.startswith(start)
        assert text.endswith(end)
        assert len(start) + int(missing.replace(",", "")) + len(end) == len(text)


def test_statistics_are_json() -> None:
    found = collect(RECORDS, DROPPED, DROPS, {})
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_memory_does_not_grow_with_the_run() -> None:
    def records(count: int) -> Iterator[dict]:
        model = make_record(7)
        for number in range(count):
            metadata = {**model["metadata"], "document_tokens": 10**6 + number}
            yield {**model, "document_id": f"book-{number}", "metadata": metadata}

    def peak(count: int) -> int:
        tracemalloc.start()
        collect(records(count), (make_dropped(number) for number in range(200)), {}, {})
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(500)  # what is made once is made
    few, many = peak(700), peak(3000)
    assert many < 1.25 * few
