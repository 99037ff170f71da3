"""Which answers are not worth learning from: each filter is a law on the text alone, and can be off."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from typing import Literal

from megatron_longpo.generation.phrases import is_refusal, is_untold
from megatron_longpo.generation.repetition import fold, is_unspaced, repeated_share
from megatron_longpo.utils.errors import UserError

FILTERS: tuple[str, ...] = ("refusal", "repetition", "too_short", "no_answer", "over_long", "identical")
"""In the order in which they are asked; the first that applies is the reason."""

Side = Literal["chosen", "rejected"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Which answers are dropped. A rejected answer may be bad, but a loop, a refusal or a stump teaches nothing either.

    Attributes:
        enabled: the filters that are asked, of `FILTERS`.
        min_words: an answer with fewer words is too short; see `count_words`.
        max_repetition_chosen: most that a chosen answer may repeat of itself, in [0, 1]; see `repetition.repeated_share`. Below a
            half, so that an answer given twice is dropped.
        max_repetition_rejected: the same of a rejected answer.
        max_answer_tokens: an answer with more is over-long, and so is one that was cut off.
    """

    enabled: frozenset[str] = frozenset(FILTERS)
    min_words: int = 2
    max_repetition_chosen: float = 0.4
    max_repetition_rejected: float = 0.7
    max_answer_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: a filter is unknown, or a bound is out of its range.
        """
        if unknown := sorted(self.enabled - set(FILTERS)):
            raise UserError(f"filters: no filter is called {unknown[0]!r}; there are {', '.join(FILTERS)}")
        if self.min_words < 1:
            raise UserError(f"--min-answer-words must be at least 1, got {self.min_words}; --skip-filter too_short turns it off")
        for name in ("max_repetition_chosen", "max_repetition_rejected"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be in [0, 1], got {getattr(self, name)}")
        if self.max_answer_tokens is not None and self.max_answer_tokens < 1:
            raise UserError(f"--max-answer-tokens must be at least 1, got {self.max_answer_tokens}")


def check_answer(
    text: str, side: Side, *, finish_reason: str, num_tokens: int, settings: FilterSettings, question: str = ""
) -> str | None:
    """Return the first filter that an answer falls to, or None.

    Args:
        text: the answer.
        side: the answer's side; a rejected answer may repeat itself more, and may answer nothing.
        finish_reason: how generation ended; ``length`` means cut off.
        num_tokens: the answer's length.
        settings: the filters.
        question: what was asked, for telling an answer that only repeats it.
    """
    most = settings.max_repetition_chosen if side == "chosen" else settings.max_repetition_rejected
    limit = settings.max_answer_tokens
    checks = {
        "refusal": lambda: is_refusal(text),
        "repetition": lambda: repeated_share(text) > most,
        "too_short": lambda: count_words(text) < settings.min_words,
        "no_answer": lambda: side == "chosen" and (is_untold(text, question) or repeats_question(text, question)),
        "over_long": lambda: finish_reason == "length" or (limit is not None and num_tokens > limit),
    }
    return next((name for name, falls in checks.items() if name in settings.enabled and falls()), None)


def check_pair(chosen: str, rejected: str, settings: FilterSettings) -> str | None:
    """Return ``identical`` if both answers are the same but for white space, case and the encoding of accents, else None."""
    return "identical" if "identical" in settings.enabled and _same_form(chosen) == _same_form(rejected) else None


def count_words(text: str) -> int:
    """Count what makes an answer: words of two letters or more, letters of scripts without spaces, and numbers twice.

    "42" may be all there is to say, and so may two characters of Chinese.
    """
    count = 0
    for word in fold(text).split():
        kinds = Counter(unicodedata.category(c)[0] for c in word)
        unspaced = sum(unicodedata.category(c)[0] == "L" and is_unspaced(c) for c in word)
        count += unspaced + (kinds["L"] - unspaced >= 2) + 2 * (kinds["N"] > 0)
    return count


def repeats_question(text: str, question: str) -> bool:
    """Tell whether an answer is the question again, or a question made of its words."""
    answer, asked = _units(text), _units(question)
    if not answer or not asked:
        return False
    if answer == asked:
        return True
    shared = (Counter(answer) & Counter(asked)).total()
    asks = re.search(r"\?[\W_]*$", unicodedata.normalize("NFKC", text))
    return asks is not None and 10 * shared >= 8 * len(answer) and 10 * len(answer) >= 6 * len(asked)


def _units(text: str) -> list[str]:
    """Cut a text into words, and into letters where there are no spaces between words."""
    return re.findall(r"\S+", "".join(f" {c} " if is_unspaced(c) else c for c in fold(text)))


def _same_form(text: str) -> str:
    """Normalise, fold case, and normalise what that made."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold()).split())
