"""Which records are taken and where they go, as a function of the documents' hashes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.selection import NOWHERE, first_equal, parse_shares, select
from megatron_longpo.utils.errors import UserError

SHARES = st.sampled_from([(1.0,), (98.0, 2.0), (0.5, 0.5), (8.0, 1.0, 1.0)])


def hashes(documents):
    """A hash for each document: the same for the same number."""
    words = [np.random.default_rng([7, document]).integers(0, 2**63, 2) for document in documents]
    return np.array(words, np.uint64).reshape(-1, 2)


@st.composite
def problems(draw):
    inputs = draw(st.lists(st.lists(st.integers(0, 12), max_size=12), min_size=1, max_size=3))
    takes = [draw(st.none() | st.integers(1, 4)) for _ in inputs]
    return inputs, takes, draw(SHARES)


def run(inputs, takes, shares, deduplicate=True):
    documents = [document for records in inputs for document in records]
    return documents, select(hashes(documents), [len(records) for records in inputs], takes, shares, deduplicate)


@settings(deadline=None)
@given(problems(), st.booleans())
def test_what_is_taken_and_what_is_left(problem, deduplicate):
    try:
        documents, selection = run(*problem, deduplicate)
    except UserError:
        return
    inputs, takes, shares = problem
    where = selection.outputs
    chosen = [document for document, output in zip(documents, where, strict=True) if output != NOWHERE]
    for records, take, taken in zip(inputs, takes, selection.taken, strict=True):
        assert taken <= len(records)
        assert take is None or taken == take
    assert sum(selection.taken) == len(chosen)
    outputs_of = {}
    for document, output in zip(documents, where, strict=True):
        if output != NOWHERE:
            outputs_of.setdefault(document, set()).add(int(output))
    assert all(len(found) == 1 for found in outputs_of.values()), "a document is in two datasets"
    left_copies = [outputs_of[d] for d, output in zip(documents, where, strict=True) if output == NOWHERE and d in outputs_of]
    if deduplicate:
        assert len(set(chosen)) == len(chosen)
        assert [left_copies.count({output}) for output in range(len(shares))] == list(selection.duplicates)
        if not any(takes):
            assert set(chosen) == set(documents)
    else:
        assert sum(selection.duplicates) == 0
        if not any(takes):
            assert len(chosen) == len(documents)
    sizes = [sum(found == {output} for found in outputs_of.values()) for output in range(len(shares))]
    assert sizes[1:] == [max(1, round(len(outputs_of) * share / sum(shares))) for share in shares[1:]]


@settings(deadline=None)
@given(st.permutations(range(20)), st.integers(1, 19))
def test_the_choice_and_the_split_follow_the_documents_not_their_order(order, take):
    def by_document(documents):
        _, selection = run([documents], [take], (3.0, 1.0)) if take > 1 else run([documents], [take], (1.0,))
        return dict(zip(documents, selection.outputs.tolist(), strict=True))

    assert by_document(list(range(20))) == by_document(order)


def test_taking_more_keeps_what_was_taken():
    taken = [set(np.flatnonzero(run([list(range(30))], [take], (1.0,))[1].outputs == 0)) for take in range(1, 31)]
    assert all(fewer < more for fewer, more in itertools.pairwise(taken))
    assert taken[9] != set(range(10))


def test_the_first_record_of_a_document_is_the_one_that_is_kept():
    _, selection = run([[4, 5], [5, 6, 4], [6]], [None, None, None], (1.0,))
    assert selection.outputs.tolist() == [0, 0, NOWHERE, 0, NOWHERE, NOWHERE]
    assert (selection.duplicates, selection.taken) == ((3,), (2, 1, 0))


def test_a_record_that_was_not_drawn_leaves_its_document_to_the_next_input():
    documents, selection = run([list(range(10)), list(range(10))], [4, None], (1.0,))
    assert selection.taken == (4, 6)
    assert sorted(document for document, output in zip(documents, selection.outputs, strict=True) if output == 0) == [*range(10)]


def test_the_split_does_not_follow_the_choice():
    """Both are drawn from one hash; documents of a sampled input must not crowd into the smaller dataset."""
    _, selection = run([list(range(400)), list(range(400, 800))], [100, None], (80.0, 20.0))
    sampled = selection.outputs[:400][selection.outputs[:400] != NOWHERE]
    assert 0.1 < (sampled == 1).mean() < 0.3


@pytest.mark.parametrize(
    ("inputs", "takes", "shares", "message"),
    [
        ([[1, 2], [3]], [None, 2], (1.0,), "--input: number 2 has 1 records to take, not 2"),
        ([[1, 1, 1]], [2], (1.0,), "--input: number 1 has 1 records to take, not 2"),
        ([[1, 2]], [None], (8.0, 1.0, 1.0), "--split: 2 documents do not make 3 datasets"),
    ],
)
def test_too_few_documents_are_an_error(inputs, takes, shares, message):
    with pytest.raises(UserError, match=message):
        run(inputs, takes, shares)


@given(st.lists(st.integers(0, 5), max_size=40))
def test_first_equal_is_the_first_place_of_each_value(values):
    assert first_equal(hashes(values)).tolist() == [values.index(value) for value in values]


@pytest.mark.parametrize("text", ["", "1", "1,", "1,0", "1,-1", "1,2,3,4", "a,b", "inf,1", "nan,1"])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=f"--split {text}: give the shares"):
        parse_shares(text)


def test_shares_are_read():
    assert parse_shares("98,2") == (98.0, 2.0)
    assert parse_shares("0.8, 0.1, 0.1") == (0.8, 0.1, 0.1)
