"""What is evaluated: which tasks, how long, how many samples, on which texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation import infinitebench, ruler
from megatron_longpo.evaluation.infinitebench import BookFile
from megatron_longpo.evaluation.questions import QuestionTask
from megatron_longpo.evaluation.sources import Task
from megatron_longpo.evaluation.text import Haystack
from megatron_longpo.utils.errors import UserError

SHORT_NAMES = ("mmlu", "arc_challenge", "hellaswag", "winogrande")
SUITES: Mapping[str, tuple[str, ...]] = {
    "ruler": ruler.NAMES,
    **{name.lower(): names for name, names in ruler.GROUPS.items()},
    "infinitebench": infinitebench.NAMES,
    "short": SHORT_NAMES,
}
"""Names that stand for several tasks."""
TASK_NAMES = (*ruler.NAMES, *infinitebench.NAMES, *SHORT_NAMES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """An evaluation, the same for each model.

    Attributes:
        seed: seed of the generated tasks, and of the tokens of answers where they are drawn.
        lengths: lengths of the generated tasks, in tokens of prompt and answer together, ascending.
        samples: samples of each generated task at each length.
        temperature: 0 for greedy answers.
        haystack: text of the generated tasks.
        generated: RULER's tasks.
        books: InfiniteBench's files.
        book_length: most tokens of prompt and answer of InfiniteBench.
        short: names of the short tasks.
        short_data: folder of their data; None: they come from the hub.
        limit: most samples of InfiniteBench's tasks and of each short one; None: all.
        save_prompts: write every prompt to disk.
        questions: the user's own.
    """

    seed: int
    lengths: Sequence[int]
    samples: int
    temperature: float
    haystack: Haystack
    generated: Sequence[Task]
    books: Sequence[BookFile]
    book_length: int
    short: Sequence[str]
    short_data: Path | None
    limit: int | None
    save_prompts: bool
    questions: Sequence[QuestionTask] = ()

    def describe(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON values."""
        described: dict[str, Any] = {"seed": self.seed, "temperature": self.temperature}
        if self.generated:
            described["ruler"] = {
                "samples": self.samples,
                "haystack": self.haystack.name,
                "haystack_sha256": self.haystack.sha256,
            }
        if self.books:
            described["infinitebench"] = {
                "length": self.book_length,
                "limit": self.limit,
                "files": {book.task.file: book.sha256 for book in self.books},
            }
        if self.short:
            described["short"] = {"limit": self.limit}
        if self.questions:
            described["questions"] = {task.file.name: task.describe() for task in self.questions}
        return described


def select_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks that are named, alone or as a suite, in a fixed order.

    Raises:
        UserError: a name is unknown.
    """
    chosen: set[str] = set()
    for name in names:
        if name not in SUITES and name not in TASK_NAMES:
            raise UserError(f"--tasks: {name!r} is none of {', '.join((*SUITES, *TASK_NAMES))}")
        chosen.update(SUITES.get(name, (name,)))
    return tuple(name for name in TASK_NAMES if name in chosen)
