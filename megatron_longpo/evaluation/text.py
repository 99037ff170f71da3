"""The text that needles are hidden in, and the words that tasks are made of.

The text is a file or a folder of text files, such as the novels of examples/data_generation/fetch_books.py, or else the language
reference that every Python carries (`pydoc_data.topics`). The words come from the text itself, so there is no list to fetch.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import random
import re
import sys
from pathlib import Path

from megatron_longpo.utils.errors import UserError

NOISE = (
    "Rain fell on the hills.",
    "The river ran down to the sea.",
    "A boat lay on the shore.",
    "Nobody came by.",
    "Then it was evening.",
)
"""What a haystack without content repeats."""

SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*$")
WORD = re.compile(r"(?<![\w'\u2019-])[a-z]{4,10}(?![\w'\u2019-])")
ROOT_LETTERS = 5
FEWEST_WORDS, FEWEST_TEXT = 500, 2000
"""Enough for a quarter of a million names."""


@dataclasses.dataclass(frozen=True)
class Haystack:
    """A text as words, without end: after its last word the first comes again.

    Attributes:
        name: where it came from, for the record.
        words: its words, with their punctuation.
    """

    name: str
    words: tuple[str, ...]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the words."""
        return hashlib.sha256(" ".join(self.words).encode()).hexdigest()

    @functools.cached_property
    def sentence_starts(self) -> tuple[int, ...]:
        """Places of the words that begin a sentence, in order; the first word does."""
        ends = (place + 1 for place, word in enumerate(self.words[:-1]) if SENTENCE_END.search(word))
        return (0, *ends)

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Plain words of 4 to 10 letters, in alphabetical order, no two of which begin with the same five letters.

        So no word is another's plural or participle, and an answer that holds one does not hold another by chance.
        """
        roots: dict[str, str] = {}
        for word in sorted(set(WORD.findall(" ".join(self.words)))):
            roots.setdefault(word[:ROOT_LETTERS], word)
        return tuple(roots.values())

    def take(self, start: int, count: int) -> list[str]:
        """Return ``count`` words from ``start`` on."""
        start %= len(self.words)
        taken = list(self.words[start : start + count])
        while len(taken) < count:
            taken += self.words[: count - len(taken)]
        return taken

    def sentence_before(self, place: int) -> int:
        """Return the nearest place at or before ``place`` where a sentence begins; places go on after the last word."""
        laps, rest = divmod(place, len(self.words))
        starts = self.sentence_starts
        return laps * len(self.words) + starts[bisect.bisect_right(starts, rest) - 1]


def load_haystack(path: Path | None, flag: str = "--haystack") -> Haystack:
    """Read a text file, or all (``*.txt``, ``*.md``) of a folder in the order of their names; None: Python's reference.

    Args:
        path: the file or folder.
        flag: which flag gave it, for errors.

    Raises:
        UserError: there is no text, or too little of it.
    """
    if path is None:
        from pydoc_data import topics

        text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
        return Haystack(f"pydoc_data.topics of Python {sys.version_info.major}.{sys.version_info.minor}", tuple(text.split()))
    files = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".md")) if path.is_dir() else [path]
    try:
        words = tuple("\n\n".join(file.read_text(encoding="utf-8") for file in files).split())
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; give a text file or a folder of them") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 text ({error.reason}); give a text file or a folder of them") from None
    haystack = Haystack(path.name, words)
    if len(words) < FEWEST_TEXT or len(haystack.vocabulary) < FEWEST_WORDS:
        raise UserError(
            f"{flag} {path}: {len(words)} words with {len(haystack.vocabulary)} different roots; at least {FEWEST_TEXT} and "
            f"{FEWEST_WORDS} are needed, in Latin letters: give a longer text"
        )
    return haystack


def draw_name(haystack: Haystack, rng: random.Random) -> str:
    """Draw a name: two words with a hyphen, of which there are a million and more."""
    return "-".join(rng.sample(haystack.vocabulary, 2))
