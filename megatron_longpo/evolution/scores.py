"""Scores by their names, out of the results of tools/evaluate.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

QUESTIONS = "questions:"


def find_score(results: Mapping[str, Any], name: str, length: int) -> float | None:
    """A score in percent.

    Args:
        results: content of a ``results.json``.
        name: of a task or a suite (``ruler``, ``niah``, ``vt``, ``short``, ``mmlu``, ...), or ``questions:NAME`` of a file of
            questions, or ``questions:NAME/GROUP`` of one group of them; ``@N`` behind one of RULER's takes it at that length.
        length: at which RULER's are taken otherwise.

    Returns:
        None, if it was not measured.
    """
    if name.startswith(QUESTIONS):
        file, _, group = name.removeprefix(QUESTIONS).partition("/")
        found = results.get("questions", {}).get(file)
        return _score(found.get("groups", {}).get(group) if found and group else found)
    name, own_length = split_length(name)
    at_length = results.get("ruler", {}).get("lengths", {}).get(str(own_length or length), {})
    if name == "ruler":
        return _score(at_length.get("average_13"))
    if name == "infinitebench":
        return results.get("infinitebench", {}).get("average")
    if name == "short":
        every = [task["score"] for task in results.get("short", {}).values()]
        return sum(every) / len(every) if every else None
    if name.upper() in at_length.get("groups", {}):
        return float(at_length["groups"][name.upper()])
    places = (at_length.get("tasks", {}), results.get("infinitebench", {}).get("tasks", {}), results.get("short", {}))
    return next((_score(place[name]) for place in places if name in place), None)


def _score(summary: Mapping[str, Any] | None) -> float | None:
    return None if summary is None else float(summary["score"])


def split_length(name: str) -> tuple[str, int | None]:
    """A score's name, and the length that stands behind it, if one does."""
    plain, _, length = name.rpartition("@")
    return (plain, int(length)) if plain and length.isdigit() and not name.startswith(QUESTIONS) else (name, None)


def is_asked(name: str, tasks: Sequence[str], questions: Sequence[str], suites: Mapping[str, Sequence[str]]) -> bool:
    """Whether an evaluation gives a score.

    Args:
        name: of the score.
        tasks: names of tasks and suites that are asked.
        questions: names of the files of questions that are asked.
        suites: names that stand for several tasks.
    """
    if name.startswith(QUESTIONS):
        return name.removeprefix(QUESTIONS).partition("/")[0] in questions
    name, _ = split_length(name)
    asked = {one for task in tasks for one in suites.get(task, (task,))}
    return bool(asked & set(suites.get(name, (name,))))
