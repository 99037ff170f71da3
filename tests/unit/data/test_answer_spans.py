"""Spans in the shapes that real chat templates have."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatron_longpo.data.record import PreferenceRecord, Turn
from megatron_longpo.data.templating import common_prefix_length
from megatron_longpo.data.tokenize_pair import DroppedError, DropReason, LengthLimits, RecordTokenizer
from megatron_longpo.data.tokenizer import TokenizerSpec
from tests.support.chat_templates import CHATML
from tests.support.make_data import make_tokenizer

NO_LIMIT = LengthLimits(10**6)
# Letters of all kinds, emoji, combining marks, white space, and pieces of the templates themselves.
WORDS = st.sampled_from(
    ["yes", "\n", "  ", "é", "e\u0301", "😀", "𓀀", "[INST]", "assistant", "\t", "The river.", "[/INST]", "0", "user\n"]
)
TEXT = st.lists(WORDS, min_size=1, max_size=6).map("".join).filter(str.strip)
TURNS = st.builds(Turn, TEXT, TEXT, TEXT, TEXT)
RECORDS = st.builds(PreferenceRecord, st.just("d"), TEXT, st.lists(TURNS, min_size=1, max_size=3).map(tuple))


def tokenize(record, tokenizer):
    return RecordTokenizer(tokenizer).pair(record, NO_LIMIT)


def answer_texts(side, tokenizer):
    return [tokenizer.decode(side.input_ids[start : end - 1]).strip() for start, end in side.answer_spans]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=RECORDS)
def test_every_span_decodes_to_its_stripped_answer_and_ends_with_the_end_of_turn(shape, record):
    template, tokenizer = shape
    try:
        pair = tokenize(record, tokenizer)
    except DroppedError as dropped:
        if dropped.reason is not DropReason.IDENTICAL_SIDES:
            raise
        return
    for side, sides, name in ((pair.chosen, pair.short_chosen, "chosen"), (pair.rejected, pair.short_rejected, "rejected")):
        answers = [getattr(turn, name).strip() for turn in record.turns]
        assert answer_texts(side, tokenizer) == answers
        assert [text for short in sides for text in answer_texts(short, tokenizer)] == answers
        for one in (side, *sides):
            for _, end in one.answer_spans:
                assert tokenizer.decode(one.input_ids[end - 1 : end]) == template.end_of_turn


def test_the_ids_are_those_of_the_whole_chat_encoded_once(tokenizer_folders, tokenizers, record):
    for name, folder in tokenizer_folders.items():
        hugging_face = AutoTokenizer.from_pretrained(folder)
        long_chat = [
            {"role": "user", "content": f"{record.long_context}\n\n{record.turns[0].instruction}"},
            {"role": "assistant", "content": record.turns[0].rejected},
            {"role": "user", "content": record.turns[1].instruction},
            {"role": "assistant", "content": record.turns[1].rejected},
            {"role": "user", "content": record.turns[2].instruction},
            {"role": "assistant", "content": record.turns[2].rejected},
        ]
        short_chat = [
            {"role": "user", "content": f"{record.turns[1].short_context}\n\n{record.turns[1].instruction}"},
            {"role": "assistant", "content": record.turns[1].chosen},
        ]
        pair = tokenize(record, tokenizers[name])
        for chat, side in ((long_chat, pair.rejected), (short_chat, pair.short_chosen[1])):
            text = hugging_face.apply_chat_template(chat, tokenize=False)
            assert side.input_ids.tolist() == hugging_face(text, add_special_tokens=False)["input_ids"]
            assert side.input_ids.dtype == np.int32


def test_there_is_exactly_one_bos_where_the_template_writes_one(tokenizers, record):
    for name in ("llama3", "mistral"):
        pair = tokenize(record, tokenizers[name])
        assert pair.chosen.input_ids[0] == 0  # the first special token has the first id
        assert np.count_nonzero(pair.chosen.input_ids == 0) == 1


def test_the_templates_default_system_prompt_stays(tokenizers, record):
    pair = tokenize(record, tokenizers["chatml"])
    for side in (pair.chosen, pair.rejected, *pair.short_chosen, *pair.short_rejected):
        assert (
            tokenizers["chatml"]
            .decode(side.input_ids)
            .startswith("<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>")
        )


def test_an_answer_is_found_where_it_is_answered_not_where_else_it_stands(shape):
    template, tokenizer = shape
    turns = (Turn("assistant\n\nyes", "Is it yes?", "yes", "no"), Turn("yes", "yes or no?", "no", "yes"))
    pair = tokenize(PreferenceRecord("d", "yes no yes assistant yes", turns), tokenizer)
    assert answer_texts(pair.chosen, tokenizer) == ["yes", "no"]
    text = tokenizer.decode(pair.chosen.input_ids)
    for (start, end), answer in zip(pair.chosen.answer_spans, ["yes", "no"], strict=True):
        assert text.startswith(tokenizer.decode(pair.chosen.input_ids[:end]))
        following = tokenizer.decode(pair.chosen.input_ids[start:])
        assert re.match(rf"\s*{answer}\s*{re.escape(template.end_of_turn)}", following)


def test_the_newline_after_the_end_of_turn_is_outside_the_span(tokenizers, record):
    pair = tokenize(record, tokenizers["chatml"])
    end = pair.chosen.answer_spans[-1][1]
    assert tokenizers["chatml"].decode(pair.chosen.input_ids[end - 1 :]) == "<|im_end|>\n"
    assert len(pair.chosen.input_ids) == end + 1


def test_content_spans_hold_user_text_and_answers_and_no_template(shape, record):
    template, tokenizer = shape
    pair = tokenize(record, tokenizer)
    contents = [tokenizer.decode(pair.chosen.input_ids[start:end]) for start, end in pair.content_spans]
    expected = []
    for index, turn in enumerate(record.turns):
        expected += [f"{record.long_context}\n\n{turn.instruction}" if index == 0 else turn.instruction, turn.chosen]
    assert [text.removesuffix(template.end_of_turn).strip() for text in contents] == expected
    assert set(pair.chosen.answer_spans) <= set(pair.content_spans)


def test_surrounding_white_space_of_answers_does_not_matter(shape, record):
    _, tokenizer = shape
    padded = dataclasses.replace(
        record, turns=tuple(dataclasses.replace(turn, chosen=f"\n {turn.chosen}  \n") for turn in record.turns)
    )
    assert np.array_equal(tokenize(padded, tokenizer).chosen.input_ids, tokenize(record, tokenizer).chosen.input_ids)


def dropped_reason(record, tokenizer, limits=NO_LIMIT):
    with pytest.raises(DroppedError) as dropped:
        RecordTokenizer(tokenizer).pair(record, limits)
    return dropped.value.reason


def change(record, index=1, **fields):
    turns = list(record.turns)
    turns[index] = dataclasses.replace(turns[index], **fields)
    return dataclasses.replace(record, turns=tuple(turns))


def test_records_that_cannot_be_used_are_dropped_with_the_reason(tokenizers, record):
    tokenizer = tokenizers["chatml"]
    same = dataclasses.replace(
        record, turns=tuple(dataclasses.replace(turn, rejected=f"{turn.chosen} ") for turn in record.turns)
    )
    cut = dataclasses.replace(record, metadata={"turns": [{}, {"finish_reason_rejected": "length"}, {}]})
    longest = max(len(side.input_ids) for side in (tokenize(record, tokenizer).chosen, tokenize(record, tokenizer).rejected))
    assert dropped_reason(change(record, rejected=" \n"), tokenizer) is DropReason.EMPTY_ANSWER
    assert dropped_reason(same, tokenizer) is DropReason.IDENTICAL_SIDES
    assert dropped_reason(cut, tokenizer) is DropReason.ANSWER_CUT_OFF
    assert dropped_reason(record, tokenizer, LengthLimits(longest - 1)) is DropReason.LONG_SIDE_TOO_LONG
    RecordTokenizer(tokenizer).pair(record, LengthLimits(longest))
    pair = tokenize(record, tokenizer)
    longest = max(len(side.input_ids) for side in (*pair.short_chosen, *pair.short_rejected))
    assert dropped_reason(record, tokenizer, LengthLimits(10**6, longest - 1)) is DropReason.SHORT_SIDE_TOO_LONG
    RecordTokenizer(tokenizer).pair(record, LengthLimits(10**6, longest))


@pytest.mark.parametrize("field", ["chosen", "rejected", "short_context", "instruction"])
def test_text_that_spells_a_control_token_is_dropped(tokenizers, record, field):
    spelt = change(record, **{field: "one <|im_end|> two"})
    assert dropped_reason(spelt, tokenizers["chatml"]) is DropReason.CONTROL_TOKEN_IN_TEXT


def custom(tmp_path, template):
    folder = make_tokenizer(tmp_path / "custom", 400, template, CHATML.special_tokens, CHATML.bos_token, CHATML.end_of_turn)
    return TokenizerSpec(str(folder)).load()


def test_a_template_that_rewrites_a_message_is_noticed(tmp_path, record):
    tokenizer = custom(tmp_path, CHATML.template.replace("message['content']", "message['content'] | upper"))
    assert dropped_reason(record, tokenizer) is DropReason.TEXT_CHANGED_BY_TEMPLATE


@pytest.mark.parametrize("place", ["{{ messages[-1]['content'] }}", "{{ messages[0]['content'] }}"])
def test_a_template_that_writes_a_message_twice_for_some_contents_is_noticed(tmp_path, place):
    template = CHATML.template + "{% if 'twice' in messages[0]['content'] %}" + place + "{% endif %}"
    tokenizer = custom(tmp_path, template)
    once, twice = (PreferenceRecord("d", "text", (Turn("text", word, "yes", "no"),)) for word in ("once", "twice"))
    assert tokenize(once, tokenizer).num_turns == 1
    assert dropped_reason(twice, tokenizer) is DropReason.TEXT_CHANGED_BY_TEMPLATE


def test_a_template_without_an_end_of_turn_is_noticed(tmp_path, record):
    tokenizer = custom(
        tmp_path, "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    )
    assert dropped_reason(record, tokenizer) is DropReason.NO_END_OF_TURN


def test_an_answer_that_shares_a_token_with_the_template_is_noticed(tmp_path, tokenizers):
    tokenizer = custom(tmp_path, CHATML.template.replace("'\n' + message['content']", "'\n har' + message['content']"))
    whole = tokenizer.encode("\n harbour").ids
    assert len(whole) == 2, "the test needs ' harbour' to be one token"
    record = PreferenceRecord("d", "text", (Turn("text", "bour", "bour", "other"),))
    assert dropped_reason(record, tokenizer) is DropReason.ANSWER_NOT_ON_TOKENS


def test_thinking_that_a_template_adds_before_the_last_answer_is_not_part_of_it(tmp_path, record):
    addition = "('<think>\n\n</think>\n\n' if loop.last else '') + message['content']"
    tokenizer = custom(tmp_path, CHATML.template.replace("message['content']", addition))
    pair = tokenize(record, tokenizer)
    assert "<think>" in tokenizer.decode(pair.chosen.input_ids)
    assert answer_texts(pair.chosen, tokenizer) == [turn.chosen for turn in record.turns]


@given(st.text("ab", max_size=40), st.text("ab", max_size=40))
def test_the_common_prefix_is_the_longest(first, second):
    length = common_prefix_length(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]
