"""A chat encoded in pieces has the ids and spans of the whole text encoded at once, and a document is encoded once."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_longpo.data import chat_encoder, encoding
from megatron_longpo.data.chat_encoder import ChatEncoder
from megatron_longpo.data.cuts import Marker, cuts_at_boundaries, cuts_before_markers, cuts_before_spaces, words_begin_with_spaces
from megatron_longpo.data.encoding import LongEncoding, OffsetEncoding
from megatron_longpo.data.record import PreferenceRecord, Turn
from megatron_longpo.data.templating import ChatTemplate, ContentNotFoundError, locate_content
from megatron_longpo.data.tokenize_pair import LengthLimits, RecordTokenizer, token_span
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from tests.support.chat_templates import LLAMA2, MISTRAL, SHAPES
from tests.support.make_data import make_sentencepiece_like, make_text, make_tokenizer
from tests.unit.data.test_sentencepiece import FILES, TEMPLATES, model_file

# White space of all kinds, the templates' own words, and characters that normalisers, mergers and byte fallback care about.
SPACES = ("\n", "\n\n", " ", "  ", "\t", "\u3000", "\u2581", "\u2581a", "\u200d")
MARKUP = ("[INST]", "[/INST]", " [/INST]", "<", "<|im_end|", "</s", "assistant", "user\n")
WORDS = st.sampled_from(("yes", "The river.", "é", "e\u0301", "\u0301", "😀", "𓀀", "0", "'s", ".", *MARKUP, *SPACES))
TEXT = st.lists(WORDS, min_size=1, max_size=12).map("".join).filter(str.strip)
CHATS = st.lists(TEXT, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0)


ENCODERS = {}
"""By tokenizer: what they have found out about its template holds for all chats."""


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory):
    """Byte-level merges under each template; sentencepiece's merges in tokenizer.json, in three dialects; real models."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for name, shape in SHAPES.items():
        arguments = (400, shape.template, shape.special_tokens, shape.bos_token, shape.end_of_turn)
        made[name] = TokenizerSpec(str(make_tokenizer(root / name, *arguments))).load()
    for dialect in DIALECTS:
        for shape in (LLAMA2, MISTRAL):
            folder = make_sentencepiece_like(root / f"{dialect}-{shape is MISTRAL}", dialect, shape)
            made[f"{dialect} {'mistral' if shape is MISTRAL else 'llama2'}"] = TokenizerSpec(str(folder)).load()
    return made


DIALECTS = ("prepend", "metaspace", "metaspace-split")


@pytest.fixture(params=[*SHAPES, *(f"{dialect} {shape}" for dialect in DIALECTS for shape in ("llama2", "mistral"))])
def made(request, all_tokenizers):
    return all_tokenizers[request.param]


@pytest.fixture(scope="module", params=sorted(FILES))
def real(request):
    return TokenizerSpec(str(model_file(request.param)), TEMPLATES[request.param]).load()


@pytest.fixture
def short_excerpts(monkeypatch):
    """Let even short texts be long ones, whose offsets come from excerpts of a few characters."""
    monkeypatch.setattr(chat_encoder, "LONG_TEXT", 20)
    monkeypatch.setattr(encoding, "MARGIN", 6)


def whole(tokenizer, text):
    """The text encoded at once, with all offsets; by transformers, where the tokenizer is one of theirs."""
    if not hasattr(tokenizer, "_tokenizer"):
        return tokenizer.encode(text)
    encoded = tokenizer._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    return OffsetEncoding(np.array(encoded["input_ids"]), offsets[:, 0], offsets[:, 1])


def chat(texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text.strip() if i % 2 else text} for i, text in enumerate(texts)]


def check_equal(tokenizer, texts, encoder=None):
    encoder = encoder or ENCODERS.setdefault(id(tokenizer), ChatEncoder(tokenizer))
    text, places = ChatTemplate(tokenizer).render(chat(texts))
    found, expected = encoder.encode(text, places, {}), whole(tokenizer, text)
    assert found.ids.tolist() == expected.ids.tolist()
    for start, end in places:
        first, last = token_span(found, start, end)
        assert (first, last) == token_span(expected, start, end)
        if last < len(found.ids):
            assert found.end_of(last) == expected.end_of(last)


COMMON = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(texts=CHATS)
def test_ids_and_spans_are_those_of_the_whole_text(made, short_excerpts, texts):
    check_equal(made, texts)


@COMMON
@given(texts=CHATS)
def test_ids_and_spans_are_those_of_the_whole_text_for_real_models(real, short_excerpts, texts):
    check_equal(real, texts)


@pytest.mark.parametrize("words", [5, 3000])
def test_long_documents_keep_their_ids_and_spans(made, words):
    text = make_text(random.Random(words), words)
    check_equal(made, [f"{text}\n\nWhat is it? \n", "A river.", " And\nwhat? ", "A stone. 😀"])


@COMMON
@given(texts=CHATS)
def test_contents_are_where_probing_one_by_one_finds_them(made, texts):
    messages = chat(texts)
    text, places = ChatTemplate(made).render(messages)
    assert text == made.render(messages)
    assert places == tuple(locate_content(made, messages, text, index) for index in range(len(messages)))


class Counting:
    """A tokenizer that counts the characters that it is given to encode."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode(self, text):
        self.characters += len(text)
        return self.tokenizer.encode(text)

    def encode_ids(self, text):
        self.characters += len(text)
        return self.tokenizer.encode_ids(text)


def check_encoded_once(tokenizer):
    rng = random.Random(0)
    document = make_text(rng, 40_000)
    turns = tuple(Turn(document[i * 9000 :][:20_000], f"What {i}? ", f"It is {i}.", "It is not.") for i in range(3))
    counting = Counting(tokenizer)
    records = RecordTokenizer(counting)
    small = PreferenceRecord("d", "Text", tuple(Turn("Text", turn.instruction, turn.chosen, turn.rejected) for turn in turns))
    records.pair(small, LengthLimits(10**6))  # tries where to cut
    counting.characters = 0
    records.pair(PreferenceRecord("d", document, turns), LengthLimits(10**6))
    assert len(document) > 200_000
    assert counting.characters < 1.02 * (len(document) + sum(len(turn.short_context) for turn in turns))


def test_a_document_is_encoded_once_for_all_sides_and_turns(made):
    check_encoded_once(made)


def test_a_document_is_encoded_once_with_real_models(real):
    check_encoded_once(real)


class Misled(Counting):
    """A tokenizer that says that a text may be cut inside of a control token."""

    def find_cuts(self, between):
        yield between.index("<|im_end|>") + 3


@COMMON
@given(texts=CHATS)
def test_a_place_where_a_cut_would_change_the_ids_is_not_cut(all_tokenizers, texts):
    tokenizer = all_tokenizers["chatml"]
    check_equal(tokenizer, texts, ENCODERS.setdefault("misled", ChatEncoder(Misled(tokenizer))))


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"single_word": True}, {"normalized": True}, {"rstrip": True}])
@COMMON
@given(texts=CHATS)
def test_control_tokens_that_mind_their_surroundings_keep_their_ids(tmp_path_factory, flags, texts):
    tokenizer = with_flags(tmp_path_factory, **flags)
    check_equal(tokenizer, texts)


def with_flags(tmp_path_factory, memory={}, **flags):  # noqa: B006  one folder for each set of flags
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    key = str(flags)
    if key not in memory:
        folder = tmp_path_factory.mktemp("flags")
        shape = SHAPES["llama2"]
        make_sentencepiece_like(folder, "prepend", shape)
        loaded = AutoTokenizer.from_pretrained(folder)
        loaded.backend_tokenizer.add_special_tokens([AddedToken("</s>", **{"normalized": False, **flags})])
        loaded.backend_tokenizer.save(str(folder / "tokenizer.json"))
        memory[key] = TokenizerSpec(str(folder)).load()
    return memory[key]


@pytest.mark.parametrize(
    ("between", "markers", "place"),
    [
        ("\n<e><s>", [Marker("<s>"), Marker("<e>")], 1),
        ("<e><s>", [Marker("<s>"), Marker("<e>", minds_left=True)], 3),
        ("<e>", [Marker("<e>"), Marker("<e>x", minds_left=True)], None),  # the longer one would be looked for first
        ("<e>", [Marker("<e>"), Marker("a<e")], None),  # text that ends with "a" would make it another token
        ("<e>", [Marker("<e>"), Marker("a<e>b")], None),
        ("<e>", [Marker("<e>"), Marker("a<f>")], 0),
        ("end", [Marker("end")], None),  # whether a word before it is single depends on it
        (" <e>", [Marker(" <e>")], None),
        ("text", [Marker("<e>")], None),
    ],
)
def test_a_cut_is_before_the_first_marker_that_is_found_whatever_precedes_it(between, markers, place):
    assert next(cuts_before_markers(between, markers), None) == place


@pytest.mark.parametrize(
    ("between", "place"), [(" [/INST] ", 8), (" [/INST]", None), ("  ", None), ("] \u2581 x", 1), ("", None), ("a  b", 1)]
)
def test_a_cut_is_before_the_last_space_behind_a_character_of_the_template(between, place):
    assert next(cuts_before_spaces(between), None) == place


def test_a_cut_is_where_words_begin_wherever_the_reading_starts():
    def pairs(text):  # words of two characters: where they begin depends on the start
        return range(0, len(text), 2)

    def runs(text):
        return [i for i in range(len(text)) if i == 0 or text[i].isalpha() != text[i - 1].isalpha()]

    assert list(cuts_at_boundaries("ab##cd", pairs)) == []
    assert list(cuts_at_boundaries("ab##cd", runs)) == [4, 2]


@pytest.mark.parametrize(("token", "safe"), [("\u2581\u2581a", True), ("a\u2581", False), ("a b", False), ("\u2581a", True)])
def test_words_begin_with_spaces_unless_a_token_holds_an_inner_one(token, safe):
    assert words_begin_with_spaces(["a", token]) == safe


def test_offsets_of_a_long_text_come_from_the_whole_where_its_ends_do_not_tell(monkeypatch):
    monkeypatch.setattr(encoding, "MARGIN", 4)
    text = "abcdefghij" * 5
    whole_text = OffsetEncoding(np.arange(50), np.arange(50), np.arange(50) + 1)
    asked = []

    def encode(part):  # gives other tokens to a part than to the whole
        asked.append(part)
        starts = np.arange(0, len(part), 2)
        return whole_text if part == text else OffsetEncoding(np.zeros(len(starts)), starts, starts + 2)

    long = LongEncoding(text, lambda _: np.arange(50), encode)
    assert (long.first_ending_after(3), long.first_starting_from(45), long.end_of(7)) == (3, 45, 8)
    assert asked.count(text) == 1


def test_a_tokenizer_whose_python_code_encodes_otherwise_is_refused(tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    original = PreTrainedTokenizerFast._encode_plus

    def backwards(self, *arguments, **options):
        encoded = original(self, *arguments, **options)
        encoded["input_ids"] = encoded["input_ids"][::-1]
        return encoded

    folder = make_tokenizer(tmp_path / "tokenizer")
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", backwards)
    with pytest.raises(UserError, match="tokenizer: its Python code gives other ids than its tokenizer"):
        TokenizerSpec(str(folder)).load()


def test_a_blank_message_has_no_place(made):
    with pytest.raises(ContentNotFoundError):
        ChatTemplate(made).render(chat(["question", "answer", " \n", "answer"]))
