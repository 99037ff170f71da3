"""Where a text can be cut so that its parts, encoded one by one, give the ids of the whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator

SPACE = "\u2581"
"""What sentencepiece writes for a space."""
INNER_SPACE = re.compile(f"[^{SPACE} ][{SPACE} ]")


@dataclasses.dataclass(frozen=True)
class Marker:
    """A string that a tokenizer looks for in the text before anything else, and encodes as one token.

    Attributes:
        text: the string.
        minds_left: whether what stands before it decides if it is found, or how far it goes.
    """

    text: str
    minds_left: bool = False


def cuts_before_markers(between: str, markers: Collection[Marker]) -> Iterator[int]:
    """Places in a text where a marker begins that is found there whatever stands before the text; first ones first.

    What is before a marker and what is behind it are encoded without regard to each other, so the text may be cut there.
    """
    found = sorted((between.find(marker.text), marker.text) for marker in markers if marker.text in between)
    yield from (position for position, text in found if _stands_alone(text, markers))


def _stands_alone(text: str, markers: Iterable[Marker]) -> bool:
    """Whether no other marker can begin before this one and reach into it, and none that begins with it minds its left side."""
    if text[0].isspace() or text[0].isalnum() or text[0] == "_":  # else it could belong to the word or the space before it
        return False
    for marker in markers:
        if marker.text.startswith(text) and marker.minds_left:
            return False
        start = marker.text.find(text[0], 1)
        while start > 0:
            rest = marker.text[start:]
            if rest.startswith(text) or text.startswith(rest):
                return False
            start = marker.text.find(text[0], start + 1)
    return True


def cuts_before_spaces(between: str) -> Iterator[int]:
    """Spaces in a text that follow a character which is none, in that text; last ones first."""
    for place in range(len(between) - 1, 0, -1):
        if between[place] == " " and not between[place - 1].isspace() and between[place - 1] != SPACE:
            yield place


def cuts_at_boundaries(between: str, boundaries: Callable[[str], Collection[int]]) -> Iterator[int]:
    """Places in a text where a pre-tokeniser begins a word, wherever in this text before it another word begins; last ones first.

    A pre-tokeniser reads forwards and remembers nothing, so a word begins there whatever stands before the text, if one begins
    anywhere between.

    Args:
        between: what the template writes.
        boundaries: where words begin in a text.
    """
    for place in sorted(boundaries(between), reverse=True):
        if 0 < place < len(between) and all(place - start in boundaries(between[start:]) for start in range(place)):
            yield place


def words_begin_with_spaces(vocabulary: Iterable[str]) -> bool:
    """Whether no token of a vocabulary holds a space behind another character: then no merge crosses the start of a word."""
    return not any(INNER_SPACE.search(token) for token in vocabulary)
