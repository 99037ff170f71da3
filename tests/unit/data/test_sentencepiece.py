"""Bare sentencepiece models, on Mistral's real ones (skipped where the mistral_common package does not carry them)."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.record import PreferenceRecord, Turn
from megatron_longpo.data.tokenize_pair import LengthLimits, RecordTokenizer
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError

FILES = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}
TEMPLATES = {
    "v1": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}",
    "v3": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}",
}
QUESTIONS = ("Was it 😀 or Höhe?\n\nTell me.", "And 𓀀  now?")
ANSWERS = ("😀 It was.", "Nothing 𓀀")


@pytest.fixture(scope="module", params=sorted(FILES))
def version(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(version):
    return TokenizerSpec(str(model_file(version)), TEMPLATES[version]).load()


def model_file(version):
    package = find_spec("mistral_common")
    path = Path(package.origin).parent / "data" / FILES[version] if package else None
    if path is None or not path.is_file():
        pytest.skip(f"mistral_common with its {FILES[version]} is not installed: Mistral's real tokenizer is not tested")
    return path


def test_the_ids_are_those_of_mistrals_own_library(version, tokenizer):
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = {"v1": MistralTokenizer.v1, "v3": MistralTokenizer.v3}[version]()
    chat = [UserMessage(content=QUESTIONS[0]), AssistantMessage(content=ANSWERS[0]), UserMessage(content=QUESTIONS[1])]
    ids = theirs.encode_chat_completion(ChatCompletionRequest(messages=chat)).tokens
    messages = [{"role": message.role, "content": message.content} for message in chat]
    assert tokenizer.encode(tokenizer.render(messages)).ids.tolist() == ids


def test_a_template_may_leave_the_dummy_prefix_to_sentencepiece():
    # Not in version 1: there [INST] is ordinary text, and the spaces are part of the text.
    tokenizer = TokenizerSpec(str(model_file("v3")), TEMPLATES["v3"]).load()
    tight = TEMPLATES["v3"].replace("'[INST] '", "'[INST]'").replace("' ' + message", "message")
    messages = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": ANSWERS[0]}]
    other = TokenizerSpec(str(model_file("v3")), tight).load()
    ids = other.encode(other.render(messages)).ids
    assert ids.tolist() == tokenizer.encode(tokenizer.render(messages)).ids.tolist()
    assert other.template_fingerprint != tokenizer.template_fingerprint


def test_spans_decode_to_the_answers_with_one_bos_and_an_eos_each(tokenizer):
    turns = tuple(Turn("part", question, answer, "No.") for question, answer in zip(QUESTIONS, ANSWERS, strict=True))
    pair = RecordTokenizer(tokenizer).pair(PreferenceRecord("d", "The 𓀀 document", turns), LengthLimits(1000))
    ids = pair.chosen.input_ids
    assert ids.tolist().count(1) == 1
    assert [tokenizer.decode(ids[start : end - 1]) for start, end in pair.chosen.answer_spans] == list(ANSWERS)
    assert [ids[end - 1] for _, end in pair.chosen.answer_spans] == [tokenizer.eos_token_id] * 2
    contents = [tokenizer.decode(ids[start:end]) for start, end in pair.content_spans]
    assert contents[0] == f"The 𓀀 document\n\n{QUESTIONS[0]}"
    assert contents[2] == QUESTIONS[1]


WORDS = st.sampled_from(["yes", "\n", "  ", "é", "😀", "𓀀", "<s>", "</s>", "The river.", "0", "\u2581"])


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, max_size=12).map("".join))
def test_offsets_cover_the_text_in_order(text):
    tokenizer = TokenizerSpec(str(model_file("v1")), "x").load()
    encoding = tokenizer.encode(text)
    assert (encoding.starts <= encoding.ends).all()
    assert (encoding.starts[1:] >= encoding.starts[:-1]).all()
    assert (encoding.ends[1:] >= encoding.ends[:-1]).all()
    covered = {i for start, end in zip(encoding.starts, encoding.ends, strict=True) for i in range(start, end)}
    assert all(i in covered for i, character in enumerate(text) if not character.isspace())


def test_all_bytes_of_a_character_belong_to_it():
    encoding = TokenizerSpec(str(model_file("v1")), "x").load().encode("a𓀀")
    assert [(s, e) for s, e in zip(encoding.starts, encoding.ends, strict=True)][-4:] == [(1, 2)] * 4


def test_a_model_without_a_template_is_refused():
    with pytest.raises(UserError, match="--chat-template"):
        TokenizerSpec(str(model_file("v1"))).load()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "x.model").write_text("nothing")
    with pytest.raises(UserError, match="not a readable sentencepiece model"):
        TokenizerSpec(str(tmp_path / "x.model"), "x").load()
