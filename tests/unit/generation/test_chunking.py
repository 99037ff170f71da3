import math
import random
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from megatron_longpo.generation.chunkers import CHUNKERS
from megatron_longpo.generation.chunking import TokenCounter, Unit, choose_window, pack_chunks, split_units

TEXTS = st.lists(
    st.sampled_from(
        ["word", "longerword", ".", "?", " ", "  ", "\n", "\n\n", "\n \t\n", "\r\n\r\n", "    indented", "Heading\n====\n"]
    ),
    max_size=80,
).map("".join)
LIMITS = st.tuples(st.integers(1, 12), st.integers(0, 12)).map(lambda pair: (min(pair), max(pair[0], pair[1])))


def count_words(texts: Sequence[str]) -> list[int]:
    """Count pieces of at most four characters of each word: long words have several tokens, white space none."""
    return [sum(-(-len(word) // 4) for word in text.split()) for text in texts]


@given(TEXTS, st.integers(1, 12))
def test_units_tile_the_text_and_keep_the_bound(text: str, max_tokens: int) -> None:
    units = split_units(text, max_tokens, count_words)
    assert "".join(text[unit.start : unit.end] for unit in units) == text
    assert [unit.start for unit in units] == [0, *(unit.end for unit in units)][: len(units)]
    assert all(unit.num_tokens == count_words([text[unit.start : unit.end]])[0] <= max_tokens for unit in units)


@given(TEXTS, LIMITS)
def test_chunks_are_spans_within_bounds_in_order(text: str, limits: tuple[int, int]) -> None:
    min_tokens, max_tokens = limits
    units = split_units(text, max_tokens, count_words)
    chunks = pack_chunks(text, units, min_tokens, max_tokens, count_words)
    end = 0
    for number, chunk in enumerate(chunks):
        content = text[chunk.start : chunk.end]
        assert chunk.index == number
        assert end <= chunk.start < chunk.end
        assert min_tokens <= chunk.num_tokens <= max_tokens
        assert chunk.num_tokens == count_words([content])[0]
        assert content.rstrip() == content
        assert not content.startswith("\n")
        end = chunk.end


@given(TEXTS, st.integers(1, 12))
def test_without_a_lower_bound_chunks_hold_every_word(text: str, max_tokens: int) -> None:
    units = split_units(text, max_tokens, count_words)
    chunks = pack_chunks(text, units, 0, max_tokens, count_words)
    words = "".join("".join(text[chunk.start : chunk.end].split()) for chunk in chunks)
    assert words == "".join(text.split())


@given(TEXTS, st.integers(1, 40), st.integers(0, 5))
@example("longerword\n \t\n    indented", 2, 0)
@example("?    indentedlongerwordlongerword", 8, 0)  # its units have 9 tokens, the whole has 8
def test_a_window_is_a_run_of_units_that_fits(text: str, max_tokens: int, seed: int) -> None:
    units = split_units(text, min(max_tokens, 6), count_words)
    whole = count_words([text])[0]
    window = choose_window(text, whole, units, max_tokens, count_words, random.Random(seed))
    if whole <= max_tokens:
        assert window == units
        return
    first = units.index(window[0])
    assert window == units[first : first + len(window)]
    assert count_words([text[window[0].start : window[-1].end]])[0] <= max_tokens
    last, used = first + len(window), sum(unit.num_tokens for unit in window)
    if last < len(units):
        assert used + units[last].num_tokens > max_tokens
    else:  # blank units before it may fit too: they hold no token
        assert used >= max_tokens or first == 0


def test_paragraphs_stay_whole_and_blank_lines_stay_as_they_are() -> None:
    text = "Before any heading.\n\n\n    code here\n    more code\n\nLast paragraph.\n"
    units = split_units(text, 5, count_words)
    assert [text[unit.start : unit.end] for unit in units] == [
        "Before any heading.\n\n\n",
        "    code here\n    more code\n\n",
        "Last paragraph.\n",
    ]
    chunks = pack_chunks(text, units, 1, 100, count_words)
    assert [text[chunk.start : chunk.end] for chunk in chunks] == [text.rstrip()]


def test_a_chunk_is_bounded_and_counted_without_the_white_space_around_it() -> None:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    text = "abc\n\n\n\nde\n\n\nfghijklm\n\n"
    units = [Unit(0, 7, 3), Unit(7, 12, 2), Unit(12, 22, 8)]
    assert [(chunk.start, chunk.end, chunk.num_tokens) for chunk in pack_chunks(text, units, 1, 9, count)] == [
        (0, 9, 9),
        (12, 20, 8),
    ]


def test_a_paragraph_that_is_too_long_is_cut_at_sentences() -> None:
    text = "One two three. Four five six? Seven eight."
    assert [text[unit.start : unit.end] for unit in split_units(text, 4, count_words)] == [
        "One two three. ",
        "Four five six? ",
        "Seven eight.",
    ]


def test_the_bound_holds_for_the_text_as_a_whole_where_counts_do_not_add_up() -> None:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + text.count("\n\n") for text in texts]

    text = "a\n\nb\n\nc\n\nd"
    units = [Unit(start, min(start + 3, len(text)), 1) for start in range(0, len(text), 3)]
    chunks = pack_chunks(text, units, 1, 4, count)
    assert [text[chunk.start : chunk.end] for chunk in chunks] == ["a\n\nb", "c\n\nd"]
    assert all(count([text[chunk.start : chunk.end]])[0] <= 4 for chunk in chunks)


def count_words_and_gaps(texts: Sequence[str]) -> list[int]:
    """Count words, and as much again for each gap between paragraphs: more in the whole than in its parts."""
    return [len(text.split()) + text.strip().count("\n\n") for text in texts]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 9))
def test_a_run_is_the_longest_that_fits_where_counts_do_not_add_up(words: list[int], max_tokens: int, seed: int) -> None:
    paragraphs = ["word " * number + "\n\n" for number in words]
    text = "".join(paragraphs)
    units = split_units(text, 4, count_words_and_gaps)
    window = choose_window(text, count_words_and_gaps([text])[0], units, max_tokens, count_words_and_gaps, random.Random(seed))
    if not window:
        return
    first, last = units.index(window[0]), units.index(window[-1]) + 1
    assert window == units[first:last]
    assert count_words_and_gaps([text[window[0].start : window[-1].end]])[0] <= max_tokens
    if last < len(units):
        assert count_words_and_gaps([text[window[0].start : units[last].end]])[0] > max_tokens
    following = pack_chunks(text, units, 0, max_tokens, count_words_and_gaps)
    for chunk in following:
        last = next(number for number, unit in enumerate(units) if unit.end > chunk.end - 1) + 1
        assert last == len(units) or count_words_and_gaps([text[chunk.start : units[last].end]])[0] > max_tokens


class Tally:
    """Counts tokens as another counter does, and what it is asked for."""

    def __init__(self, count: TokenCounter) -> None:
        self.count = count
        self.calls = 0
        self.characters = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        self.calls += 1
        self.characters += sum(map(len, texts))
        return self.count(texts)


def test_a_long_text_is_counted_a_few_times_however_many_units_and_chunks_it_has() -> None:
    text = "".join(f"{'word ' * (number % 50)}ends.\n\n" for number in range(20_000))
    tally = Tally(count_words)
    units = split_units(text, 2000, tally)
    assert (tally.calls, tally.characters) == (1, len(text))
    window = choose_window(text, count_words([text])[0], units, 100_000, tally, random.Random(0))
    assert tally.characters <= 2 * len(text)
    before, chunks = tally.characters, pack_chunks(text, window, 1000, 2000, tally)
    assert len(chunks) > 45
    assert tally.characters - before <= 3 * sum(unit.end - unit.start for unit in window)


def test_the_end_of_a_run_is_found_in_a_few_counts_even_if_the_parts_tell_nothing() -> None:
    text = "word\n\n" * 4096
    units = [Unit(start, start + 6, 0) for start in range(0, len(text), 6)]
    for max_tokens in (1, 2, 100, 4000, 8000, 8190):
        tally = Tally(count_words_and_gaps)
        window = choose_window(text, count_words_and_gaps([text])[0], units, max_tokens, tally, random.Random(0))
        assert len(window) == (max_tokens + 1) // 2
        assert tally.calls <= 2 * math.log2(len(units)) + 3


def test_a_level_of_cutters_that_finds_nothing_costs_no_count() -> None:
    text = "Words without any heading.\n\n" * 100
    tally = Tally(count_words_and_gaps)
    units = split_units(text, 8, tally, CHUNKERS["arxiv"])
    assert len(units) == 100
    assert tally.calls == 1
