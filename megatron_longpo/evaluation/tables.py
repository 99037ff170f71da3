"""Results of several models as tables, with the paper's rows under ours; as text for a console and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatron_longpo.evaluation import infinitebench, published, ruler
from megatron_longpo.evaluation.questions import METRICS
from megatron_longpo.evaluation.short import TASKS as SHORT_TASKS

Results = Mapping[str, Any]
"""What `run.evaluate` returns for one model."""

MARK = "published"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A percentage with its standard error; no value where there is none.

    An error of 0 is not shown: it says that samples were alike, of which a few tell little.
    """

    value: float | None
    error: float | None = None

    def __str__(self) -> str:
        """Write it with one decimal."""
        if self.value is None:
            return "-"
        return f"{self.value:.1f}" if not self.error else f"{self.value:.1f} ±{self.error:.1f}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A model's cells; ``published`` ones are the paper's."""

    model: str
    cells: Sequence[Cell]
    published: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        head: names of the columns, without the one of the models.
        rows: ours, then the paper's.
        note: what a reader has to know.
        detail: belongs to those who want to know more.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    detail: bool = False


def make_tables(results: Sequence[Results]) -> Iterator[Table]:
    """Make the tables for which there are results."""
    if any("ruler" in result for result in results):
        yield _by_length(results)
        yield _by_group(results)
        for result in results:
            if "ruler" in result:
                yield _by_task(result)
    if any("infinitebench" in result for result in results):
        yield _books(results)
    if any("short" in result for result in results):
        yield _short(results)
    for name in question_names(results):
        yield _questions(results, name)


def name_length(length: int) -> str:
    """Write a length as people say it."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def ruler_lengths(results: Sequence[Results]) -> list[int]:
    """List the lengths of RULER that any model was asked at."""
    return sorted({int(length) for result in results for length in result.get("ruler", {}).get("lengths", {})})


def _cell(summary: Mapping[str, Any] | None) -> Cell:
    return Cell(None) if summary is None else Cell(summary["score"], summary.get("stderr"))


def _by_length(results: Sequence[Results]) -> Table:
    lengths = sorted({*ruler_lengths(results), *published.LENGTHS})
    rows = []
    for result in _with("ruler", results):
        found = result["ruler"]["lengths"]
        cells = [_cell(found.get(str(length), {}).get("average_13")) for length in lengths]
        rows.append(Row(result["model"]["name"], [*cells, _cell(result["ruler"]["mean"]["average_13"])]))
    for paper in published.BY_LENGTH:
        by_length = dict(zip(published.LENGTHS, paper.tasks, strict=True))
        cells = [Cell(by_length.get(length)) for length in lengths]
        rows.append(Row(paper.model, [*cells, Cell(_mean(paper.tasks))], True))
    return Table(
        title="RULER: mean of the tasks, by length",
        head=[*map(name_length, lengths), "mean"],
        rows=rows,
        note=_coverage(results),
    )


def _by_group(results: Sequence[Results]) -> Table:
    rows = []
    for result in _with("ruler", results):
        mean = result["ruler"]["mean"]
        groups = [Cell(mean["groups"].get(name)) for name in ruler.GROUPS]
        rows.append(Row(result["model"]["name"], [*groups, _cell(mean["average_13"]), _cell(mean["average_3"])]))
    by_length = {paper.model: paper for paper in published.BY_LENGTH}
    for paper in published.LONG:
        niah, vt, qa, three = paper.ruler
        detailed = by_length.get(paper.model)
        agg = _mean(detailed.groups["AGG"]) if detailed else None
        thirteen = _mean(detailed.tasks) if detailed else None
        cells = [Cell(niah), Cell(vt), Cell(agg), Cell(qa), Cell(thirteen), Cell(three)]
        rows.append(Row(f"{paper.model} ({paper.length})", cells, True))
    names = [name_length(length) for length in ruler_lengths(results)]
    return Table(
        title="RULER: groups, mean over lengths",
        head=[*ruler.GROUPS, "13 tasks", "NIAH, VT, QA"],
        rows=rows,
        note=" ".join(filter(None, (f"Ours at {', '.join(names)}, the paper's at 4K to 128K.", _coverage(results)))),
    )


def _by_task(result: Results) -> Table:
    """A table of one model, whose rows are tasks."""
    found = {int(length): summary for length, summary in result["ruler"]["lengths"].items()}
    names = [name for name in ruler.NAMES if any(name in summary["tasks"] for summary in found.values())]
    rows = [Row(name, [_cell(summary["tasks"].get(name)) for summary in found.values()]) for name in names]
    cut = sum(task["cut_off"] for summary in found.values() for task in summary["tasks"].values())
    samples = sum(task["samples"] for summary in found.values() for task in summary["tasks"].values())
    return Table(
        title=f"RULER by task: {result['model']['name']}",
        head=[name_length(length) for length in found],
        rows=rows,
        note=f"Of {samples} answers, {cut} were cut off by their limit of tokens.",
        detail=True,
    )


def _books(results: Sequence[Results]) -> Table:
    rows, cut = [], []
    for result in _with("infinitebench", results):
        tasks, name = result["infinitebench"]["tasks"], result["model"]["name"]
        cells = [_cell(tasks.get(task)) for task in infinitebench.NAMES]
        rows.append(Row(name, [*cells, Cell(result["infinitebench"]["average"])]))
        books, shortened = (sum(task[field] for task in tasks.values()) for field in ("samples", "cut"))
        cut.append(f"{shortened} of {books} prompts lost their middle for {name}.")
    rows += [
        Row(f"{paper.model} ({paper.length})", [Cell(value) for value in paper.infinitebench], True) for paper in published.LONG
    ]
    return Table(
        title="InfiniteBench", head=[*(task.title for task in infinitebench.BOOK_TASKS), "mean"], rows=rows, note=" ".join(cut)
    )


def _short(results: Sequence[Results]) -> Table:
    rows, notes = [], []
    for result in _with("short", results):
        short, name = result["short"], result["model"]["name"]
        rows.append(Row(name, [_cell(short.get(task)) for task in SHORT_TASKS]))
        mmlu = short.get("mmlu")
        if mmlu and mmlu["subjects"] < mmlu["of_subjects"]:
            notes.append(f"MMLU for {name}: {mmlu['subjects']} of {mmlu['of_subjects']} subjects.")
    rows += [Row(model, [Cell(value) for value in values], True) for model, values in published.SHORT.items()]
    notes.append("Accuracy; of ARC-C and HellaSwag by log-prob per character. Which of the two the paper reports is not stated.")
    head = [f"{task.title} ({task.few_shot}-shot)" for task in SHORT_TASKS.values()]
    return Table(title="Short context", head=head, rows=rows, note=" ".join(notes))


def question_names(results: Sequence[Results]) -> list[str]:
    """List the files of the users' own questions that any model was asked."""
    return list(dict.fromkeys(name for result in _with("questions", results) for name in result["questions"]))


def question_groups(results: Sequence[Results], name: str) -> list[str]:
    """List the groups of such a file, in its order."""
    found = (result["questions"].get(name, {"groups": {}}) for result in _with("questions", results))
    return list(dict.fromkeys(group for summary in found for group in summary["groups"]))


def _questions(results: Sequence[Results], name: str) -> Table:
    groups = question_groups(results, name)
    rows, notes = [], []
    for result in _with("questions", results):
        summary = result["questions"].get(name)
        if summary is None:
            continue
        model = result["model"]["name"]
        rows.append(Row(model, [*(_cell(summary["groups"].get(group)) for group in groups), _cell(summary)]))
        counts = [f"{group}: {summary['groups'][group]['samples']}" for group in groups if group in summary["groups"]]
        asked = f"{summary['samples']} questions" + (f" ({', '.join(counts)})" if counts else "")
        notes.append((model, f"{METRICS[summary['metric']].title}; {asked}, {summary['cut_off']} answers cut off by their limit"))
    said: dict[str, list[str]] = {}
    for model, words in notes:
        said.setdefault(words, []).append(model)
    note = " ".join(f"{', '.join(models)}: {words}." for words, models in said.items())
    return Table(title=f"Questions: {name}", head=[*groups, "all"], rows=rows, note=note)


def _with(part: str, results: Iterable[Results]) -> Iterator[Results]:
    return (result for result in results if part in result)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _coverage(results: Sequence[Results]) -> str:
    """Say which tasks the averages of which models lack."""
    said: dict[str, list[str]] = {}
    for result in _with("ruler", results):
        average = result["ruler"]["mean"]["average_13"]
        missing = average["missing"] if average else ruler.NAMES
        if missing:
            said.setdefault(f"without {', '.join(missing)}", []).append(result["model"]["name"])
    return " ".join(f"Averages of {', '.join(models)}: {words}." for words, models in said.items())


def as_text(table: Table) -> str:
    """Lay out a table for a console."""
    head = ["", *table.head]
    lines = [[row.model + (f" [{MARK}]" if row.published else ""), *map(str, row.cells)] for row in table.rows]
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    laid = [
        "  ".join(_pad(text, width, place) for place, (text, width) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *lines]
    ]
    return "\n".join([table.title, *(line.rstrip() for line in laid), *([table.note] if table.note else [])])


def _pad(text: str, width: int, place: int) -> str:
    return text.ljust(width) if place == 0 else text.rjust(width)


def as_markdown(table: Table) -> str:
    """Write a table in Markdown; published rows are in italics."""
    lines = [f"## {table.title}", "", f"| | {' | '.join(table.head)} |", f"|---|{'--:|' * len(table.head)}"]
    for row in table.rows:
        model = f"*{row.model}, {MARK}*" if row.published else row.model
        lines.append(f"| {model} | {' | '.join(map(str, row.cells))} |")
    return "\n".join([*lines, *(["", table.note] if table.note else [])])
