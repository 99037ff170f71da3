"""Where Markdown and HTML may be cut: before their headings, and HTML also before its blocks.

Fenced code, and comments and preformatted text that begin a line, have no headings.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from megatron_longpo.generation.cutting import Cutter, cut_before, hidden_spans, visible_matches

HIDDEN = re.compile(
    r"""
    ^[ \t>]* (?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*       # code in a quotation or a list
        (?P<fence> `{3,}(?=[^`\n]*$) | ~{3,})
    | ^[ \t]* (?P<comment><!--)
    | ^[ \t]* <(?P<element>pre|script|style|textarea)\b
    """,
    re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)
COMMENT_END = re.compile("-->")

HEADING = re.compile(
    r"""
    (?P<atx> ^[ ]{0,3} (?P<signs>\#{1,6}) (?=[ \t\r\n]|\Z))
    | (?:\A | ^[ \t\r]*\n)                          # a title with a line of = or - below stands in a paragraph of its own
        (?P<title> [ ]{0,3} (?![#>|]|[-*+][ \t]) \S[^\n]* \n [ ]{0,3} (?P<rule>=+|-+) [ \t\r]*$)
    | (?P<tag> (?:^[ \t]*)? <h(?P<rank>[1-6]) (?=[\s>/]))
    """,
    re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)

HTML_BLOCK = re.compile(
    r"(?:^[ \t]*)?<(?:p|div|section|article|table|[uod]l|li|tr|pre|blockquote|figure|header|footer|main|nav|aside)(?=[\s>/])",
    re.MULTILINE | re.IGNORECASE,
)


def _closer(opening: re.Match[str]) -> re.Pattern[str]:
    if opening["comment"]:
        return COMMENT_END
    return _fence_end(opening["fence"]) if opening["fence"] else _element_end(opening["element"])


@functools.lru_cache(maxsize=64)
def _fence_end(fence: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t>]*{fence[0]}{{{len(fence)},}}[ \t\r]*$", re.MULTILINE)


@functools.cache
def _element_end(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\b", re.IGNORECASE)


def _headings(level: int, text: str, start: int, end: int) -> Iterator[int]:
    hidden = hidden_spans(text, start, end, HIDDEN, _closer)
    for match in visible_matches(HEADING, text, start, end, hidden):
        if match["atx"]:
            kind, found = "atx", len(match["signs"])
        elif match["title"]:
            kind, found = "title", 1 if match["rule"][0] == "=" else 2
        else:
            kind, found = "tag", int(match["rank"])
        if found == level:
            yield match.start(kind)


HEADING_CUTTERS: tuple[Cutter, ...] = tuple(functools.partial(_headings, level) for level in range(1, 7))
"""One for each level: ``# Title`` (or underlined with ``=``, or ``<h1>``) to ``###### Title`` (or ``<h6>``)."""

cut_html_blocks: Cutter = cut_before(HTML_BLOCK)
"""Begins a piece at each HTML element that stands on lines of its own, such as ``<p>``."""
