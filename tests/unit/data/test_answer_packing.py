"""Each packed answer sees its prompt and itself, whatever is packed beside it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.data.answer_packing import WORTH_SHARING, AnswerBatch, AnswerItem, pack_answers
from megatron_longpo.utils.constants import IGNORE_INDEX


@st.composite
def items(draw: st.DrawFn) -> list[AnswerItem]:
    """Prompts over two words, so that many begin alike, some of them at great length."""
    starts = [
        np.array(draw(st.lists(st.integers(0, 1), max_size=8)) + [0, 1] * draw(st.integers(0, 60)), dtype=np.int32) for _ in "ab"
    ]
    tokens = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(lambda ids: np.array(ids, dtype=np.int32))
    found = []
    for _ in range(draw(st.integers(1, 6))):
        prompt = np.concatenate([draw(st.sampled_from(starts)), draw(tokens)])
        found.append(AnswerItem(prompt, tuple(draw(st.lists(tokens, min_size=1, max_size=3)))))
    return found


def seen_by(batch: AnswerBatch, row: int) -> list[int]:
    """Rows that a row sees, in the order of their positions."""
    index = next(place for place, chain in enumerate(batch.chains) if chain.start <= row < chain.end)
    chain = batch.chains[index]
    rows = list(range(chain.start, row + 1))
    while chain.parent is not None:
        parent = batch.chains[chain.parent]
        rows = [*range(parent.start, parent.start + chain.attach), *rows]
        chain = parent
    return rows


@given(items(), st.integers(1, 400), st.sampled_from([1, 4]))
def test_each_answer_is_predicted_from_its_prompt_and_its_beginning(
    given: list[AnswerItem], max_rows: int, multiple: int
) -> None:
    batches = list(pack_answers(given, max_rows, multiple))
    found = []
    for batch in batches:
        assert len(batch.tokens) % multiple == 0
        for answer in range(batch.num_answers):
            rows = (batch.owner == answer).nonzero().squeeze(1).tolist()
            contexts = []
            for row in rows:
                seen = seen_by(batch, row)
                assert batch.position_ids[seen].tolist() == list(range(len(seen)))
                contexts.append(batch.tokens[seen].tolist())
            found.append((contexts, batch.labels[rows].tolist()))
        assert torch.equal(batch.owner >= 0, batch.labels != IGNORE_INDEX)
    wanted = []
    for item in given:
        for answer in item.answers:
            whole = [*item.prompt.tolist(), *answer.tolist()]
            ends = range(len(item.prompt), len(whole))
            wanted.append(([whole[:end] for end in ends], answer.tolist()))
    assert found == wanted


@given(items(), st.integers(1, 400))
def test_sequences_are_filled_and_none_is_overfull_but_for_one_item_alone(given: list[AnswerItem], max_rows: int) -> None:
    batches, place = list(pack_answers(given, max_rows, 1)), 0
    for batch in batches:
        answers, first = batch.num_answers, place
        while answers:
            answers -= len(given[place].answers)
            place += 1
        assert len(batch.tokens) <= max_rows or place - first == 1
    assert place == len(given)
    assert list(pack_answers(given, 10**6, 1))[1:] == []


def test_a_start_is_shared_from_a_length_on_that_pays() -> None:
    for length, is_shared in ((WORTH_SHARING - 1, False), (WORTH_SHARING, True)):
        start = list(range(length))
        asked = [AnswerItem(np.array([*start, number, 7]), (np.array([1]),)) for number in (500, 501)]
        (batch,) = pack_answers(asked, 1000, 1)
        assert len(batch.tokens) == 2 * (length + 2) - (length if is_shared else 0)


def test_context_ranks_hold_the_rows_between_them() -> None:
    item = AnswerItem(np.arange(20), (np.array([21, 22]), np.array([23])))
    (batch,) = pack_answers([item], 100, 4)
    parts = [batch.slice_context(2, rank, torch.device("cpu")) for rank in range(2)]
    assert {part.packed.length for part in parts} == {len(batch.tokens)}
    assert sorted(row for part in parts for row in part.packed.tokens.tolist()) == sorted(batch.tokens.tolist())
    assert sum(int((part.owner >= 0).sum()) for part in parts) == 3
