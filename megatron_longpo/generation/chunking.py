"""Where a document is cut: units, the window that fits a sequence, and chunks: spans of the document's own characters.

A chunk or a window is always ``text[start:end]``. Nothing is stripped and joined again, so what the model reads as a chunk
stands, character for character, in the long context.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Callable, Sequence

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Number of tokens of each text alone, without special tokens."""

PARAGRAPH_END = re.compile(r"\n(?:[ \t\r]*\n)+")
FINER_ENDS = (re.compile(r"\n"), re.compile(r"[.!?][\"')\]]*\s+"), re.compile(r"\s+"))
"""Where a unit that is too long alone is cut: after a line, else after a sentence, else after a word; else in the middle."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of text that is never cut: a paragraph with the blank lines after it, or a part of one that is too long.

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


def split_units(text: str, max_tokens: int, count: TokenCounter) -> list[Unit]:
    """Tile a text with units of at most ``max_tokens`` tokens (a single character may have more).

    Returns:
        Units in order; the first starts at 0, each starts where the one before ends, the last ends at ``len(text)``.
    """
    return _split(text, 0, len(text), (PARAGRAPH_END, *FINER_ENDS), max_tokens, count)


def _split(
    text: str, start: int, end: int, ends: tuple[re.Pattern[str], ...], max_tokens: int, count: TokenCounter
) -> list[Unit]:
    if start == end:
        return []
    cuts = [match.end() for match in ends[0].finditer(text, start, end)] if ends else [(start + end) // 2]
    bounds = sorted({start, *cuts, end})
    spans = list(itertools.pairwise(bounds))
    units: list[Unit] = []
    for (first, last), tokens in zip(spans, count([text[a:b] for a, b in spans]), strict=True):
        if tokens <= max_tokens or last - first == 1:
            units.append(Unit(first, last, tokens))
        else:
            units.extend(_split(text, first, last, ends[1:], max_tokens, count))
    return units


def choose_window(text: str, units: Sequence[Unit], max_tokens: int, count: TokenCounter, rng: random.Random) -> list[Unit]:
    """Choose the consecutive units that fit into ``max_tokens``: all of them, or as many as fit from a random start.

    A start is one from which the rest of the document fills the window.
    """
    total = sum(unit.num_tokens for unit in units)
    if total <= max_tokens and count([text])[0] <= max_tokens:
        return list(units)
    starts, remaining = [], total
    for number, unit in enumerate(units):
        if number and remaining < max_tokens:
            break
        starts.append(number)
        remaining -= unit.num_tokens
    first = rng.choice(starts)
    return _longest_run(text, units[first:], max_tokens, count)


def pack_chunks(text: str, units: Sequence[Unit], min_tokens: int, max_tokens: int, count: TokenCounter) -> list[Chunk]:
    """Pack consecutive units into chunks of ``min_tokens`` to ``max_tokens`` tokens, in order, without overlap.

    A chunk's blank lines at either end are left out of it. What makes no chunk (a short rest at the end) is in none.
    """
    chunks: list[Chunk] = []
    rest = list(units)
    while rest:
        run = _longest_run(text, rest, max_tokens, count)
        rest = rest[max(1, len(run)) :]
        if not run:
            continue
        start, end = trim(text, run[0].start, run[-1].end)
        tokens = count([text[start:end]])[0]
        if start < end and min_tokens <= tokens <= max_tokens:
            chunks.append(Chunk(len(chunks), start, end, tokens))
    return chunks


def _longest_run(text: str, units: Sequence[Unit], max_tokens: int, count: TokenCounter) -> list[Unit]:
    """Take units from the start while they fit, going by their own counts and then by the count of the text as a whole."""
    taken, total = 0, 0
    while taken < len(units) and total + units[taken].num_tokens <= max_tokens:
        total += units[taken].num_tokens
        taken += 1
    while taken and count([text[units[0].start : units[taken - 1].end]])[0] > max_tokens:
        taken -= 1
    return list(units[:taken])


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out blank lines at the start (an indented first line keeps its indent) and white space at the end."""
    end = start + len(text[start:end].rstrip())
    blank = re.compile(r"(?:[ \t\r]*\n)*").match(text, start, end)
    return (blank.end() if blank else start), end
