"""A packed sequence says the same as two whole sequences: every row's target, position and visible tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.batch import PreferenceBatch
from megatron_longpo.data.layout import shared_prefix_length
from megatron_longpo.data.packing import PackingOptions, PackItem, pack_pairs, packed_size, short_pairs
from megatron_longpo.data.pair import PreferencePair, Side
from megatron_longpo.parallel.packed_sequence import ancestors
from megatron_longpo.utils.constants import IGNORE_INDEX

Rows = dict[tuple[int, ...], int]


def side(prompt: list[int], answers: list[list[int]], follow_ups: list[list[int]]) -> Side:
    ids, spans = list(prompt), []
    for number, answer in enumerate(answers):
        ids += follow_ups[number - 1] if number else []
        spans.append((len(ids), len(ids) + len(answer)))
        ids += answer
    return Side(np.array(ids, dtype=np.int32), tuple(spans))


@st.composite
def pairs(draw: st.DrawFn) -> PreferencePair:
    tokens = st.integers(0, 3)  # few words, so that sides share prefixes that reach into answers
    turns = draw(st.integers(1, 3))
    prompt = draw(st.lists(tokens, min_size=2, max_size=8))
    follow_ups = [draw(st.lists(tokens, min_size=1, max_size=3)) for _ in range(turns - 1)]
    answers = [[draw(st.lists(tokens, min_size=1, max_size=4)) for _ in range(turns)] for _ in range(2)]
    chosen, rejected = (side(prompt, each, follow_ups) for each in answers)
    shorts = [tuple(side(prompt[:2], [answer], []) for answer in each) for each in answers]
    content = ((1, len(prompt)), *chosen.answer_spans)
    return PreferencePair("d", chosen, rejected, content, shorts[0], shorts[1])


def seen_by(batch: PreferenceBatch) -> list[tuple[int, ...]]:
    """For each row, the tokens that it sees, in order, itself last."""
    tokens, result = batch.tokens.tolist(), []
    for index, chain in enumerate(batch.chains):
        before = [token for start, end in ancestors(batch.chains, index) for token in tokens[start:end]]
        result += [tuple(before + tokens[chain.start : row + 1]) for row in range(chain.start, chain.end)]
    return result


def counted(batch: PreferenceBatch, which: torch.Tensor) -> list[tuple[tuple[int, ...], int, int]]:
    """(seen tokens, target, segment) of every row that counts in a map: what a sum of log-probs is made of."""
    rows = zip(seen_by(batch), batch.labels.tolist(), which.tolist(), strict=True)
    return sorted((seen, label, segment) for seen, label, segment in rows if segment >= 0)


def expected(sequence: Side, spans: tuple[tuple[int, int], ...], values: list[int]) -> list[tuple[tuple[int, ...], int, int]]:
    ids = sequence.input_ids.tolist()
    return sorted(
        (tuple(ids[:target]), ids[target], value)
        for (start, end), value in zip(spans, values, strict=True)
        for target in range(max(start, 1), end)
    )


@settings(max_examples=200)
@given(pairs(), st.booleans(), st.sampled_from([1, 4, 8]))
def test_every_target_is_predicted_from_its_own_side_s_tokens(pair: PreferencePair, sharing: bool, multiple: int) -> None:
    batch = pack_pairs([PackItem(pair)], PackingOptions(prefix_sharing=sharing, multiple=multiple))
    turns = list(range(pair.num_turns))
    assert counted(batch, batch.chosen_turn) == expected(pair.chosen, pair.chosen.answer_spans, turns)
    assert counted(batch, batch.rejected_turn) == expected(pair.rejected, pair.rejected.answer_spans, turns)
    length = len(pair.chosen.input_ids)
    assert counted(batch, batch.nll_pair) == expected(pair.chosen, ((1, length),), [0])
    assert batch.nll_tokens.tolist() == [length - 1]
    assert batch.length % multiple == 0


@given(pairs(), st.booleans())
def test_a_row_s_position_is_the_number_of_tokens_before_it(pair: PreferencePair, sharing: bool) -> None:
    batch = pack_pairs([PackItem(pair)], PackingOptions(prefix_sharing=sharing, multiple=4))
    assert batch.position_ids.tolist() == [len(seen) - 1 for seen in seen_by(batch)]


@given(pairs())
def test_the_shared_prefix_is_encoded_once(pair: PreferencePair) -> None:
    prefix = shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids)
    batch = pack_pairs([PackItem(pair)], PackingOptions())
    # one more row than tokens: the copy of the last prefix token
    assert batch.length == len(pair.chosen.input_ids) + len(pair.rejected.input_ids) - prefix + 1


@given(pairs(), st.builds(PackingOptions, prefix_sharing=st.booleans(), with_rejected=st.booleans(), with_short=st.booleans()))
def test_a_pair_is_measured_without_being_packed(pair: PreferencePair, options: PackingOptions) -> None:
    """Rows, and score pairs: a row sees as many tokens as it has before it, and itself."""
    sides = [(pair.chosen, pair.rejected), *zip(pair.short_chosen, pair.short_rejected, strict=True)]
    ids = [(chosen.input_ids, rejected.input_ids) for chosen, rejected in sides]
    lengths = [(len(chosen), len(rejected), shared_prefix_length(chosen, rejected)) for chosen, rejected in ids]
    rows, score_pairs = packed_size(lengths[0], options, lengths[1:])
    batch = pack_pairs([PackItem(pair)], options)
    assert rows == batch.length
    assert score_pairs == sum(len(seen) for seen in seen_by(batch))


@given(pairs())
def test_rows_without_weight_have_no_label(pair: PreferencePair) -> None:
    batch = pack_pairs([PackItem(pair)], PackingOptions(nll_scope=None, multiple=8))
    used = (batch.chosen_turn >= 0) | (batch.rejected_turn >= 0)
    assert ((batch.labels != IGNORE_INDEX) == used).all()


@given(pairs())
def test_nll_scopes_count_their_own_targets(pair: PreferencePair) -> None:
    for scope, spans in (("answers", pair.chosen.answer_spans), ("no-template", pair.content_spans)):
        batch = pack_pairs([PackItem(pair)], PackingOptions(nll_scope=scope))
        assert counted(batch, batch.nll_pair) == expected(pair.chosen, spans, [0] * len(spans))


@given(st.lists(pairs(), min_size=1, max_size=3), st.booleans(), st.sampled_from(["all", "no-template", "answers", None]))
def test_a_row_s_weight_is_known_where_no_preference_weighs_it(several: list[PreferencePair], both: bool, scope: Any) -> None:
    batch = pack_pairs([PackItem(pair) for pair in several], PackingOptions(nll_scope=scope, with_rejected=both))
    for row, weight in enumerate(batch.known_weights.tolist()):
        pair = int(batch.nll_pair[row])
        is_answer = int(batch.chosen_turn[row]) >= 0 or int(batch.rejected_turn[row]) >= 0
        if pair < 0 or (both and is_answer):
            assert weight == 0
        else:
            assert weight == 1 / batch.nll_tokens[pair].item()


@settings(max_examples=50)
@given(st.lists(pairs(), min_size=2, max_size=3), st.booleans())
def test_packing_pairs_together_changes_nothing_of_each(several: list[PreferencePair], sharing: bool) -> None:
    options = PackingOptions(prefix_sharing=sharing)
    together = pack_pairs([PackItem(pair) for pair in several], options)
    alone = [pack_pairs([PackItem(pair)], options) for pair in several]
    turns = max(pair.num_turns for pair in several)
    moved = []
    for index, batch in enumerate(alone):
        moved += [(seen, label, index * turns + turn) for seen, label, turn in counted(batch, batch.rejected_turn)]
    assert counted(together, together.rejected_turn) == sorted(moved)
    assert together.nll_tokens.tolist() == [batch.nll_tokens.item() for batch in alone]


@given(pairs())
def test_a_batch_survives_the_broadcast(pair: PreferencePair) -> None:
    batch = pack_pairs([PackItem(pair, np.arange(4.0 * pair.num_turns).reshape(-1, 4), (3, 7))], PackingOptions(multiple=4))
    assert batch.reference_logps[0, 0].tolist() == [0, 1]
    assert batch.long_reference_logps[0, 0].tolist() == [2, 3]
    again = PreferenceBatch.from_tensors(batch.to_tensors())
    assert again.chains == batch.chains
    for one, other in zip(batch.to_tensors(), again.to_tensors(), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=100)
@given(st.lists(pairs(), min_size=1, max_size=3), st.booleans())
def test_short_chats_are_packed_beside_the_long_one_and_count_for_themselves(
    several: list[PreferencePair], sharing: bool
) -> None:
    options = PackingOptions(prefix_sharing=sharing, with_rejected=False, with_short=True)
    batch = pack_pairs([PackItem(pair) for pair in several], options)
    most = max(pair.num_turns for pair in several)
    chosen, rejected, tokens = [], [], []
    for index, pair in enumerate(several):
        turns = [index * most + turn for turn in range(pair.num_turns)]
        chosen += expected(pair.chosen, pair.chosen.answer_spans, turns)
        for segment, one, other in zip(turns, pair.short_chosen, pair.short_rejected, strict=True):
            chosen += expected(one, one.answer_spans, [len(several) * most + segment])
            rejected += expected(other, other.answer_spans, [len(several) * most + segment])
            tokens.append([end - start for ((start, end),) in (one.answer_spans, other.answer_spans)])
    assert counted(batch, batch.chosen_turn) == sorted(chosen)
    assert counted(batch, batch.rejected_turn) == sorted(rejected)
    assert batch.short_answer_tokens[batch.turn_mask > 0].tolist() == tokens
    assert batch.position_ids.tolist() == [len(seen) - 1 for seen in seen_by(batch)]
    assert not (batch.known_weights[(batch.chosen_turn >= 0) | (batch.rejected_turn >= 0)]).any()


@given(pairs(), st.sampled_from([1, 2, 4]))
def test_context_ranks_together_hold_every_counted_row_once(pair: PreferencePair, cp: int) -> None:
    batch = pack_pairs([PackItem(pair)], PackingOptions(multiple=2 * cp))
    parts = [batch.slice_context(cp, rank) for rank in range(cp)]
    for name, whole in (("chosen_turn", batch.chosen_turn), ("rejected_turn", batch.rejected_turn), ("nll_pair", batch.nll_pair)):
        held = torch.cat([getattr(part, name) for part in parts])
        assert held.sort().values.equal(whole.sort().values)
    labels = torch.cat([part.packed.labels for part in parts])
    assert labels.sort().values.equal(batch.labels.sort().values)


@given(pairs())
def test_a_short_pair_reads_its_own_turn_only(pair: PreferencePair) -> None:
    parts = short_pairs(pair)
    assert [part.num_turns for part in parts] == [1] * pair.num_turns
    batch = pack_pairs([PackItem(part) for part in parts], PackingOptions(nll_scope=None))
    wanted = []
    for turn, (chosen, _) in enumerate(zip(pair.short_chosen, pair.short_rejected, strict=True)):
        wanted += expected(chosen, chosen.answer_spans, [turn])
    assert counted(batch, batch.chosen_turn) == sorted(wanted)
