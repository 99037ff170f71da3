"""Whether short-context skill is intact: MMLU, ARC-C, HellaSwag and Winogrande, asked and scored by lm-eval.

Prompts and metrics are lm-eval's own tasks; only where the data lie is ours.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.inference.journal import Journal
from megatron_longpo.utils.errors import UserError

ENDINGS = (".parquet", ".jsonl", ".json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortTask:
    """A benchmark.

    Attributes:
        title: the paper's name for it.
        few_shot: solved examples before each question, the paper's.
        metric: lm-eval's, which stands for the benchmark; what else it gives is kept beside.
        splits: splits of the data that are read: the one that is asked, the one of the examples.
        folders: where the data are looked for, under the folder of all data.
    """

    title: str
    few_shot: int
    metric: str
    splits: tuple[str, str]
    folders: tuple[str, ...]


TASKS: Mapping[str, ShortTask] = {
    "mmlu": ShortTask(title="MMLU", few_shot=5, metric="acc", splits=("test", "dev"), folders=("mmlu",)),
    "arc_challenge": ShortTask(
        title="ARC-C",
        few_shot=25,
        metric="acc_norm",
        splits=("test", "train"),
        folders=("arc_challenge", "ai2_arc/ARC-Challenge", "ARC-Challenge"),
    ),
    "hellaswag": ShortTask(
        title="HellaSwag",
        few_shot=10,
        metric="acc_norm",
        splits=("validation", "train"),
        folders=("hellaswag", "hellaswag/data"),
    ),
    "winogrande": ShortTask(
        title="Winogrande",
        few_shot=5,
        metric="acc",
        splits=("validation", "train"),
        folders=("winogrande", "winogrande/winogrande_xl"),
    ),
}
MMLU_SUBJECTS = 57


@dataclasses.dataclass(frozen=True)
class ShortResult:
    """What short tasks gave: numbers by task, and a row for each sample and each prompt."""

    summary: dict[str, Any]
    samples: Sequence[dict[str, Any]]
    prompts: Sequence[dict[str, Any]]


def check_harness() -> None:
    """Make sure that lm-eval is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("short tasks are asked by lm-eval, which is not installed: pip install 'megatron-longpo[eval]'")


def evaluate_short(plan: Plan, model: Model, journal: Journal) -> ShortResult | None:
    """Ask a model the plan's short tasks; the journal keeps each log-prob.

    Raises:
        UserError: lm-eval or the data are missing or unreadable, or a server has the model.
    """
    if not plan.short:
        return None
    check_harness()
    if model.folder is None:
        raise UserError("short tasks need log-probs of given answers, which chat servers do not give: use --model FOLDER")
    from megatron_longpo.evaluation.harness import ask_harness

    return ask_harness(plan, model, journal)


def find_data(folder: Path, name: str) -> dict[str, list[str]]:
    """Return the files of each split of a benchmark.

    The folder may be a clone of the dataset's repository (Parquet), or hold ``SPLIT.jsonl`` of the same columns.

    Raises:
        UserError: there are none.
    """
    task = TASKS[name]
    for place in task.folders:
        found = {split: _files(folder / place, split) for split in task.splits}
        if all(found.values()):
            return found
    tried = " or ".join(str(folder / place) for place in task.folders)
    raise UserError(
        f"--short-data: no files of {task.title} in {tried}; they must be named {task.splits[0]}* and {task.splits[1]}* and end "
        f"in {', '.join(ENDINGS)}"
    )


def find_subjects(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the files of each split of each subject of MMLU, whose folders lie in ``mmlu``.

    Raises:
        UserError: there are none.
    """
    place = folder / "mmlu"
    subjects = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        found = {split: _files(path, split) for split in TASKS["mmlu"].splits}
        if path.is_dir() and path.name not in ("all", "auxiliary_train") and all(found.values()):
            subjects[path.name] = found
    if not subjects:
        raise UserError(f"--short-data: no subject of MMLU in {place}; each is a folder with dev* and test* in it")
    return subjects


def _files(folder: Path, split: str) -> list[str]:
    if not folder.is_dir():
        return []
    names = (path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    return sorted(str(path) for path in names if path.name == split + path.suffix or path.name.startswith(f"{split}-"))
