r"""Where a LaTeX paper may be cut: before its headings.

Comments, verbatim environments and what stands between ``\iffalse`` and ``\fi`` have no headings.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from megatron_longpo.generation.cutting import Cutter, hidden_spans, visible_matches

_COMMAND = r"(?<!\\)(?:\\\\)*"
"""Before a command's backslash: an even number of backslashes, which are line breaks."""

_ALONE = r"(?![A-Za-z@])"
"""After a command without arguments: its name ends here."""

HIDDEN = re.compile(
    _COMMAND
    + r"(?:(?P<comment>%)|\\iffalse"
    + _ALONE
    + r"|\\begin\s*\{(?P<environment>verbatim\*?|Verbatim\*?|lstlisting|minted|alltt|comment|filecontents\*?)\})"
)
COMMENT_END = re.compile(r"\n|\Z")
FALSE_END = re.compile(r"\\(?:fi|else)" + _ALONE)

LEVELS = (
    r"part\*?\s*[\[{]",
    r"chapter\*?\s*[\[{]",
    r"(?:section\*?|abstract|bibliography)\s*[\[{]"
    r"|begin\s*\{(?:abstract|appendix|appendices|thebibliography|references)\}"
    r"|(?:appendix|printbibliography)" + _ALONE,
    r"subsection\*?\s*[\[{]",
    r"subsubsection\*?\s*[\[{]",
    r"paragraph\*?\s*[\[{]",
)
"""What follows the backslash of a heading, the coarsest first."""


def _closer(opening: re.Match[str]) -> re.Pattern[str]:
    if opening["comment"]:
        return COMMENT_END
    return _environment_end(opening["environment"]) if opening["environment"] else FALSE_END


@functools.cache
def _environment_end(name: str) -> re.Pattern[str]:
    return re.compile(rf"\\end\s*\{{{re.escape(name)}\}}")


def _headings(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[int]:
    hidden = hidden_spans(text, start, end, HIDDEN, _closer)
    return (match.start("heading") for match in visible_matches(pattern, text, start, end, hidden))


HEADING_CUTTERS: tuple[Cutter, ...] = tuple(
    functools.partial(_headings, re.compile(rf"{_COMMAND}(?P<heading>\\(?:{level}))")) for level in LEVELS
)
"""One for each level of headings: parts, chapters, sections (and abstract, appendix, bibliography) to paragraphs with a title."""
