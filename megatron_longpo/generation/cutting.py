"""Where a text may be cut: the interface of cutters, and what the cutters of every domain are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

Cutter = Callable[[str, int, int], Iterable[int]]
"""Finds the positions in ``text[start:end]`` where a piece may begin, given the text, start and end."""

Chunker = tuple[Cutter, ...]
"""Cutters of a domain, the coarsest first. A piece that is too long for one is cut by the next."""

Span = tuple[int, int]

PARAGRAPH_END = re.compile(r"\n(?:[ \t\r]*\n)+|\u2029")
LINE_END = re.compile(r"(?:\r\n?|[\n\f\u2028\u2029])+")
SENTENCE_END = re.compile(
    r"""
    [.!?\u2026] ["'\u201d\u2019)\]]* \s+                                        # full stop, closing quotes, white space
    | [\u3002\uff01\uff1f\uff61] [\u201d\u2019\u300d\u300f\uff09]*              # the same in Chinese and Japanese, without it
    """,
    re.VERBOSE,
)
WORD_END = re.compile(r"\s+")


def cut_after(pattern: re.Pattern[str]) -> Cutter:
    """Return a cutter that begins a piece behind each match: its characters stay with what is before them."""
    return lambda text, start, end: (match.end() for match in pattern.finditer(text, start, end))


def cut_before(pattern: re.Pattern[str]) -> Cutter:
    """Return a cutter that begins a piece at each match."""
    return lambda text, start, end: (match.start() for match in pattern.finditer(text, start, end))


def hidden_spans(
    text: str, start: int, end: int, opener: re.Pattern[str], closer: Callable[[re.Match[str]], re.Pattern[str]]
) -> Iterator[Span]:
    """Find what is no structure even if it looks like it: comments, code, verbatim text.

    Args:
        text: the text.
        start: where to begin, outside of any such span.
        end: where to stop.
        opener: where a span begins.
        closer: from the match of the opener, the pattern whose next match ends the span. Without one it goes to the end, so
            that the time is linear however many are left open.
    """
    position = start
    while opening := opener.search(text, position, end):
        closing = closer(opening).search(text, opening.end(), end)
        position = closing.end() if closing else end
        yield opening.start(), position


def visible_matches(pattern: re.Pattern[str], text: str, start: int, end: int, hidden: Iterable[Span]) -> Iterator[re.Match[str]]:
    """Find the matches of a pattern in ``text[start:end]`` that touch no hidden span (in order, not overlapping)."""
    position = start
    for first, last in (*hidden, (end, end)):
        yield from pattern.finditer(text, position, first)
        position = last
