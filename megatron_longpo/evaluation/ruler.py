"""RULER's thirteen tasks, their groups and their two averages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from megatron_longpo.evaluation.counting import CommonWordsTask, FrequentWordsTask
from megatron_longpo.evaluation.needles import NEEDLE_TASKS
from megatron_longpo.evaluation.reading import QuestionSet, ReadingTask
from megatron_longpo.evaluation.scoring import Score, holds_all, holds_any
from megatron_longpo.evaluation.sources import Task
from megatron_longpo.evaluation.tracking import TrackingTask

QA_TASKS = ("qa_1", "qa_2")
GROUPS: dict[str, tuple[str, ...]] = {
    "NIAH": tuple(task.name for task in NEEDLE_TASKS),
    "VT": ("vt",),
    "AGG": ("cwe", "fwe"),
    "QA": QA_TASKS,
}
NAMES = tuple(name for names in GROUPS.values() for name in names)
AVERAGED_GROUPS = ("NIAH", "VT", "QA")
"""The groups whose mean is the average of the paper's Table 1; that of its Table 2 is the mean of all thirteen tasks."""


def make_tasks(squad: QuestionSet | None, hotpotqa: QuestionSet | None) -> tuple[Task, ...]:
    """List the tasks that can be made: those of reading need their files."""
    reading = [ReadingTask(name, source) for name, source in zip(QA_TASKS, (squad, hotpotqa), strict=True) if source is not None]
    return (*NEEDLE_TASKS, TrackingTask(), CommonWordsTask(), FrequentWordsTask(), *reading)


def score_of(task: str) -> Score:
    """Return how answers to a task are scored."""
    return holds_any if task in QA_TASKS else holds_all


@dataclasses.dataclass(frozen=True)
class Average:
    """A mean, with the names of what it covers and of what is missing for it to be what its name says."""

    value: float
    covers: tuple[str, ...]
    missing: tuple[str, ...]


def average_groups(scores: Mapping[str, float]) -> dict[str, Average]:
    """Average tasks' scores by group; groups without any are left out."""
    averages = {name: _average(scores, names) for name, names in GROUPS.items()}
    return {name: average for name, average in averages.items() if average is not None}


def average_tasks(scores: Mapping[str, float]) -> Average | None:
    """Average over the thirteen tasks, as far as there are scores."""
    return _average(scores, NAMES)


def average_three(scores: Mapping[str, float]) -> Average | None:
    """Average the groups NIAH, VT and QA, as far as there are scores."""
    groups = average_groups(scores)
    return _average({name: average.value for name, average in groups.items()}, AVERAGED_GROUPS)


def _average(scores: Mapping[str, float], names: Sequence[str]) -> Average | None:
    covers = tuple(name for name in names if name in scores)
    if not covers:
        return None
    missing = tuple(name for name in names if name not in scores)
    return Average(sum(scores[name] for name in covers) / len(covers), covers, missing)
