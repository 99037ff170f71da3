"""Whether the next round is worth it: is short-context skill intact, and is there anything gained at the round's length?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evolution.scores import find_score
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import read_json

ROUNDING = 1e-9
"""Points by which a difference of two means may miss a bound that it meets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What a decision is made on.

    Attributes:
        base: results of the model that everything started from.
        before: results of the round before, or of the base.
        after: results of the round.
        length: of the round.
        short: names of the scores whose mean is the short-context score.
        max_short_loss: most points that it may be below the base's.
        long: names of the scores whose mean is the long-context score.
        min_long_gain: least points that it must be above that of ``before``.
    """

    base: Path
    before: Path
    after: Path
    length: int
    short: Sequence[str] = ()
    max_short_loss: float
    long: Sequence[str] = ()
    min_long_gain: float


def decide(question: Question) -> dict[str, Any]:
    """Decide.

    Returns:
        ``continue``, ``reasons`` (in words), and the scores: ``short`` and ``long``, each with its names and means, or None.

    Raises:
        UserError: a score is not in the results.
    """
    short = _compare(question.short, question.base, question.after, question.length)
    long = _compare(question.long, question.before, question.after, question.length)
    stops: list[str] = []
    goes_on: list[str] = []
    if short:
        change = short["after"] - short["before"]
        text = f"short score {short['after']:.2f}, {change:+.2f} from the base's"
        bound = f"may lose {question.max_short_loss:g}"
        (stops if -change > question.max_short_loss + ROUNDING else goes_on).append(f"{text} ({bound})")
    if long:
        change = long["after"] - long["before"]
        text = f"long score {long['after']:.2f} at {question.length}, {change:+.2f} from before"
        bound = f"must gain {question.min_long_gain:g}"
        (stops if change < question.min_long_gain - ROUNDING else goes_on).append(f"{text} ({bound})")
    reasons = stops or goes_on or ["there is no rule to stop"]
    return {"continue": not stops, "reasons": reasons, "length": question.length, "short": short, "long": long}


def _compare(names: Sequence[str], before: Path, after: Path, length: int) -> dict[str, Any] | None:
    if not names:
        return None
    found = {"before": _scores(before, names, length), "after": _scores(after, names, length)}
    means = {place: sum(scores.values()) / len(scores) for place, scores in found.items()}
    return {**means, "scores": {name: {place: scores[name] for place, scores in found.items()} for name in names}}


def _scores(path: Path, names: Sequence[str], length: int) -> Mapping[str, float]:
    try:
        results = read_json(path)
        scores = {name: find_score(results, name, length) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not results of tools/evaluate.py ({error})") from None
    if not results:
        raise UserError(f"{path}: is not there")
    absent = [name for name, score in scores.items() if score is None]
    if absent:
        raise UserError(f"{path}: has no score {absent[0]} (length {length}); ask for it in evaluate, or leave it out of stop")
    return {name: score for name, score in scores.items() if score is not None}
