"""Answers to scores, and scores to the numbers that a model is known by. All scores are percentages."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatron_longpo.evaluation import infinitebench, ruler
from megatron_longpo.evaluation.answering import Answer
from megatron_longpo.evaluation.questions import OwnQuestion, QuestionTask

DEPTH_BINS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """An answer with its score, from 0 to 1; ``question`` is the user's own, if it is one."""

    task: str
    length: int
    index: int
    answer: Answer
    score: float
    question: OwnQuestion | None = None


def summarise_task(scored: Sequence[Scored]) -> dict[str, Any]:
    """Sum up one task at one length: mean, its standard error, how many samples, how many answers were cut off."""
    scores = [100 * one.score for one in scored]
    mean = sum(scores) / len(scores)
    spread = sum((score - mean) ** 2 for score in scores)
    error = math.sqrt(spread / (len(scores) - 1) / len(scores)) if len(scores) > 1 else None
    return {
        "score": mean,
        "stderr": error,
        "samples": len(scores),
        "cut_off": sum(one.answer.finish_reason == "length" for one in scored),
    }


def summarise_ruler(scored: Iterable[Scored]) -> dict[str, Any]:
    """Sum up RULER: by length, and over all lengths.

    Returns:
        ``lengths``: by length, and ``mean``: averages over the lengths, each with ``tasks``, ``groups``, ``average_13`` and
        ``average_3``; ``needles``: how often the needles asked for were found, by length and tenth of the depth.
    """
    by_place: dict[int, dict[str, list[Scored]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    needles: dict[tuple[int, int], list[bool]] = collections.defaultdict(list)
    for one in scored:
        by_place[one.length][one.task].append(one)
        for depth, found in _needles(one):
            needles[one.length, min(int(depth * DEPTH_BINS), DEPTH_BINS - 1)].append(found)
    lengths = {}
    for length, tasks in sorted(by_place.items()):
        summaries = {name: summarise_task(tasks[name]) for name in ruler.NAMES if name in tasks}
        lengths[str(length)] = {"tasks": summaries, **_averages(summaries)}
    return {
        "lengths": lengths,
        "mean": _mean_over_lengths(list(lengths.values())),
        "needles": [
            {"length": length, "depth": depth / DEPTH_BINS, "found": 100 * sum(found) / len(found), "count": len(found)}
            for (length, depth), found in sorted(needles.items())
        ],
    }


def _needles(one: Scored) -> Iterator[tuple[float, bool]]:
    """Yield depth and whether the answer has it, of each needle that was asked for."""
    for value, depth, asked in one.answer.needles:
        if asked:
            yield depth, bool(ruler.score_of(one.task)(one.answer.answer, [value]))


def _averages(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Average tasks' summaries by group and over all."""
    scores = {name: summary["score"] for name, summary in summaries.items()}
    errors = {name: summary["stderr"] for name, summary in summaries.items()}
    return {
        "groups": {name: average.value for name, average in ruler.average_groups(scores).items()},
        "average_13": _describe(ruler.average_tasks(scores), errors, ruler.NAMES),
        "average_3": _describe(ruler.average_three(scores), {}, ()),
    }


def _describe(average: ruler.Average | None, errors: Mapping[str, float | None], names: Sequence[str]) -> dict[str, Any] | None:
    """Describe an average, with its standard error where it is a plain mean of independent ones."""
    if average is None:
        return None
    covered = [errors.get(name) for name in names if name in average.covers]
    known = [error for error in covered if error is not None]
    error = math.hypot(*known) / len(known) if known and len(known) == len(covered) else None
    return {"score": average.value, "stderr": error, "covers": average.covers, "missing": average.missing}


def _mean_over_lengths(lengths: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average each task over the lengths, and the tasks as at one length. Tasks that some length lacks are left out."""
    names = [name for name in ruler.NAMES if lengths and all(name in length["tasks"] for length in lengths)]
    tasks = {}
    for name in names:
        summaries = [length["tasks"][name] for length in lengths]
        errors = [summary["stderr"] for summary in summaries]
        tasks[name] = {
            "score": sum(summary["score"] for summary in summaries) / len(summaries),
            "stderr": None if None in errors else math.hypot(*errors) / len(errors),
        }
    return {"tasks": tasks, **_averages(tasks)}


def summarise_books(scored: Sequence[Scored]) -> dict[str, Any]:
    """Sum up InfiniteBench: ``tasks``, and ``average``, the mean of the three if all are there."""
    by_task = {name: [one for one in scored if one.task == name] for name in infinitebench.NAMES}
    tasks = {name: {**summarise_task(some), "cut": sum(one.answer.cut for one in some)} for name, some in by_task.items() if some}
    complete = len(tasks) == len(infinitebench.NAMES)
    return {
        "tasks": tasks,
        "average": sum(task["score"] for task in tasks.values()) / len(tasks) if complete else None,
    }


def summarise_questions(task: QuestionTask, scored: Iterable[Scored]) -> dict[str, Any]:
    """Sum up a file of the user's questions: as a task, with its metric, and each of its groups as one, 2x before 16x."""
    groups: dict[str, list[Scored]] = {}
    own = [one for one in scored if one.task == task.file.name]
    for one in own:
        if one.question and one.question.group is not None:
            groups.setdefault(one.question.group, []).append(one)
    return {
        "metric": task.metric,
        **summarise_task(own),
        "groups": {name: summarise_task(groups[name]) for name in sorted(groups, key=_natural)},
    }


def _natural(name: str) -> list[tuple[str, int, str]]:
    """A key that orders numbers in names by their value."""
    parts = ((text, digits.lstrip("0")) for text, digits in re.findall(r"(\D*)(\d*)", name))
    return [(text, len(digits), digits) for text, digits in parts]
