"""Where a document is cut: units, the window that fits a sequence, and chunks: spans of the document's own characters.

A chunk or a window is always ``text[start:end]``. Nothing is stripped and joined again, so what the model reads as a chunk
stands, character for character, in the long context.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence

from megatron_longpo.generation.chunkers import CHUNKERS, Chunker
from megatron_longpo.generation.cutting import Span

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Number of tokens of each text alone, without special tokens."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of text that is never cut: a section or a paragraph with the blank lines after it, or a part of one too long.

    Attributes:
        start: first character.
        end: one past the last character.
        num_tokens: tokens of these characters alone.
    """

    start: int
    end: int
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of a document.

    Attributes:
        index: its number among the document's chunks, in order.
        start: first character in the document.
        end: one past the last character.
        num_tokens: tokens of the chunk alone.
    """

    index: int
    start: int
    end: int
    num_tokens: int


def split_units(text: str, max_tokens: int, count: TokenCounter, chunker: Chunker = CHUNKERS["text"]) -> list[Unit]:
    """Tile a text with units of at most ``max_tokens`` tokens (a single character may have more).

    The coarsest cutter that finds a place to cut decides on the pieces. A piece that fits is a unit; one that does not is cut by
    the next cutter, and by halves when there is none left. Each cutter's pieces are counted in one call.

    Returns:
        Units in order; the first starts at 0, each starts where the one before ends, the last ends at ``len(text)``.
    """
    units: list[Unit] = []
    large = [(0, len(text))] if text else []
    for cutter in chunker:
        whole: list[Span] = []
        pieces: list[Span] = []
        for start, end in large:
            spans = _tile(start, end, cutter(text, start, end))
            (pieces if len(spans) > 1 else whole).extend(spans)
        large = [*whole, *_take_small(text, pieces, max_tokens, count, units)]
    while large := _take_small(text, large, max_tokens, count, units):
        large = [half for start, end in large for half in _tile(start, end, [(start + end) // 2])]
    return sorted(units, key=lambda unit: unit.start)


def _tile(start: int, end: int, cuts: Iterable[int]) -> list[Span]:
    inner = {cut for cut in cuts if start < cut < end}
    return list(itertools.pairwise(sorted({start, *inner, end})))


def _take_small(text: str, spans: Sequence[Span], max_tokens: int, count: TokenCounter, units: list[Unit]) -> list[Span]:
    """Add the spans that fit to the units, and return the others."""
    large = []
    counts = count([text[start:end] for start, end in spans]) if spans else []
    for (start, end), tokens in zip(spans, counts, strict=True):
        if tokens <= max_tokens or end - start == 1:
            units.append(Unit(start, end, tokens))
        else:
            large.append((start, end))
    return large


def choose_window(
    text: str, num_tokens: int, units: Sequence[Unit], max_tokens: int, count: TokenCounter, rng: random.Random
) -> list[Unit]:
    """Choose the consecutive units that fit into ``max_tokens``: all of them, or as many as fit from a random start.

    A start is one from which the rest of the document fills the window. The whole text has ``num_tokens``: fewer than its units
    together, where one ends inside a word.
    """
    if num_tokens <= max_tokens:
        return list(units)
    starts, remaining = [], sum(unit.num_tokens for unit in units)
    for number, unit in enumerate(units):
        if number and remaining < max_tokens:
            break
        starts.append(number)
        remaining -= unit.num_tokens
    first = rng.choice(starts)
    last = _longest_run(units, first, max_tokens, lambda start, end: count([text[start:end]])[0])
    return list(units[first:last])


def pack_chunks(text: str, units: Sequence[Unit], min_tokens: int, max_tokens: int, count: TokenCounter) -> list[Chunk]:
    """Pack consecutive units into chunks of ``min_tokens`` to ``max_tokens`` tokens, in order, without overlap.

    A chunk's blank lines at either end are left out of it. What makes no chunk (a short rest before a unit that does not fit
    beside it, or at the end) is in none.
    """

    @functools.lru_cache(maxsize=8)
    def measure(start: int, end: int) -> int:
        first, last = trim(text, start, end)
        return count([text[first:last]])[0]

    chunks: list[Chunk] = []
    first = 0
    while first < len(units):
        last = _longest_run(units, first, max_tokens, measure)
        if last > first:
            bounds = (units[first].start, units[last - 1].end)
            start, end = trim(text, *bounds)
            if start < end and min_tokens <= measure(*bounds) <= max_tokens:
                chunks.append(Chunk(len(chunks), start, end, measure(*bounds)))
        first = max(first + 1, last)
    return chunks


def _longest_run(units: Sequence[Unit], first: int, max_tokens: int, measure: Callable[[int, int], int]) -> int:
    """Take units while they fit, going by their own counts and then by the count of the run as a whole.

    Where the whole has more tokens than its parts, the end is sought backwards in steps that double and then between the last
    two of them: a few counts, however many units there are.

    Returns:
        One past the last unit taken; ``first`` if there is none.
    """
    last, total = first, 0
    while last < len(units) and total + units[last].num_tokens <= max_tokens:
        total += units[last].num_tokens
        last += 1

    def fits(end: int) -> bool:
        return end == first or measure(units[first].start, units[end - 1].end) <= max_tokens

    beyond, step = last + 1, 1
    while not fits(last):
        beyond, last = last, max(first, last - step)
        step *= 2
    while beyond - last > 1:
        middle = (last + beyond) // 2
        last, beyond = (middle, beyond) if fits(middle) else (last, middle)
    return last


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out blank lines at the start (an indented first line keeps its indent) and white space at the end."""
    end = start + len(text[start:end].rstrip())
    blank = re.compile(r"(?:[ \t\r]*\n)*").match(text, start, end)
    return (blank.end() if blank else start), end
