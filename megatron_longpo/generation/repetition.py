"""How much of a text only repeats what stands before it, in any script."""

from __future__ import annotations

import unicodedata
from collections import Counter

MAX_CHARACTERS = 65536
"""Nothing beyond is looked at, so that an enormous answer costs a bounded time."""

RUN = 40
"""Characters that must come again in a row to count as a repeat: about seven words. Lists and refrains share shorter runs."""

DENSE_RUN = 14
"""The same where words are not spaced, as in Chinese or Thai, which say as much in a third of the characters."""

SHORT = 20
"""In a spaced text of fewer characters only a word that stands in it three times is a repeat: "New York, New York" is no loop."""

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI SYLLABLE")


def fold(text: str) -> str:
    """Reduce a text to its letters, marks and digits, case folded, with one space for everything between them."""
    folded = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split())


def is_unspaced(character: str) -> bool:
    """Tell whether a letter is of a script that puts no spaces between words."""
    return not character.isascii() and unicodedata.name(character, "").startswith(_UNSPACED)


def repeated_share(text: str) -> float:
    """Measure the share of a text's characters that stand in a run which has come before.

    A loop of period ``p`` and length ``L`` has ``(L - p) / L``, whether the period is a word, a sentence or a page: a text said
    twice has a half. A run is `RUN` characters of the folded text (`DENSE_RUN` in scripts without spaces), or a quarter of a text
    that is shorter than four of them.

    Returns:
        The share, in [0, 1]; 0 for a text without letters and digits.
    """
    folded = fold(text)
    if not folded:
        return 0.0
    is_dense = 2 * sum(map(is_unspaced, folded)) > len(folded)
    if len(folded) < SHORT and not is_dense:
        words = Counter(folded.split())
        return 1 - len(words) / words.total() if max(words.values()) > 2 else 0.0
    run = max(2, min(DENSE_RUN if is_dense else RUN, len(folded) // 4))
    seen: set[str] = set()
    repeated = covered = 0
    for start in range(len(folded) - run + 1):
        window = folded[start : start + run]
        if window in seen:
            repeated += start + run - max(covered, start)
            covered = start + run
        seen.add(window)
    return repeated / len(folded)
