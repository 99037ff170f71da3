"""Scores of answers, as the benchmarks' own programs give them. Each takes an answer and the right ones, and returns 0 to 1."""

from __future__ import annotations

import collections
import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from megatron_longpo.utils.errors import UserError

Score = Callable[[str, Sequence[str]], float]

_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def holds_all(answer: str, expected: Sequence[str]) -> float:
    """Return the share of the right answers that occur in an answer, in any case: RULER's score of all tasks but reading."""
    text = _tidy(answer)
    return sum(one.lower() in text for one in expected) / len(expected)


def holds_any(answer: str, expected: Sequence[str]) -> float:
    """Return 1 if one of the right answers occurs in an answer, whatever its case: RULER's score of reading.

    lm-eval 0.4.13 gives the share that occurs in its place, which differs where a question has several right answers.
    """
    text = _tidy(answer)
    return float(any(one.lower() in text for one in expected))


def equals_any(answer: str, expected: Sequence[str]) -> float:
    """Return 1 if an answer as a whole is one of the right ones, whatever its case and its white space."""
    return float(_squeeze(answer) in map(_squeeze, expected))


def _squeeze(text: str) -> str:
    return " ".join(text.lower().split())


def _tidy(answer: str) -> str:
    return _CONTROL.sub("\n", answer.strip()).strip().lower()


def word_f1(answer: str, expected: Sequence[str]) -> float:
    """Return the best F1 of the words of an answer against those of a right one: InfiniteBench's score of En.QA (SQuAD's F1)."""
    return max(_f1(_words(answer), _words(one)) for one in expected)


def _words(text: str) -> list[str]:
    """Split into words, in lower case, without punctuation and articles."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: Sequence[str], expected: Sequence[str]) -> float:
    common = (collections.Counter(words) & collections.Counter(expected)).total()
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def rouge_lsum(answer: str, expected: Sequence[str]) -> float:
    """Return the best ROUGE-L-Sum F1 against a right summary: InfiniteBench's score of En.Sum.

    Sentences are lines, and words are not stemmed.

    Raises:
        UserError: the package ``rouge_score`` is absent.
    """
    scorer = load_rouge()
    return max(float(scorer.score(one, answer)["rougeLsum"].fmeasure) for one in expected)


@functools.cache
def load_rouge() -> Any:
    """Make the scorer of summaries.

    Raises:
        UserError: the package ``rouge_score`` is absent.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise UserError(
            f"En.Sum is scored by rouge_score, but {error.name} is not installed: pip install 'megatron-longpo[eval]'"
        ) from None
    return RougeScorer(["rougeLsum"], use_stemmer=False)


CHOICES = "ABCD"
_OPENINGS = ("answer is:", "answer:", "answer is", "option is")
_LAST_LETTER = re.compile(r"\b[A-D]\b(?!.*\b[A-D]\b)")
_SPACED = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))


def picks_choice(answer: str, expected: Sequence[str]) -> float:
    """Return 1 if an answer picks the right choice: InfiniteBench's score of En.MC.

    Its rules, in this order: the last lone letter A to D of the first line that has one, if it is the right one; the letter that
    the answer begins with; the right choice's text as the whole answer; what follows an opening such as "answer is"; the first
    word that is such a letter.

    Args:
        answer: the model's.
        expected: the right choice's letter and text, in any order.
    """
    text = answer.strip()
    if not text:
        return 0.0
    if (found := _LAST_LETTER.search(text)) and found[0] in expected:
        return 1.0
    if text[0] in CHOICES:
        return float(text[0] in expected)
    if text in expected:
        return 1.0
    spaced = re.sub(" {2,}", " ", text.translate(_SPACED))
    for opening in _OPENINGS:
        _, found_opening, after = spaced.partition(opening)
        if found_opening:
            return float(any(after[1:].startswith(one) for one in expected))
    letters = (word for word in spaced.split() if word in CHOICES)
    return float(next(letters, "") in expected)
