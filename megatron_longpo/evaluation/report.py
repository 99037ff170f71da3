"""The report of an output folder: all its models side by side, as JSON, Markdown, a page, and lines for a console."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.published import SOURCE
from megatron_longpo.evaluation.report_drawings import heatmap_png
from megatron_longpo.evaluation.report_page import render_page
from megatron_longpo.evaluation.run import RESULTS, SAMPLES
from megatron_longpo.evaluation.tables import MARK, Table, as_markdown, as_text, make_tables
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import write_bytes, write_json, write_text

HEATMAP = "needles.png"
SHOWN_SAMPLES = 24
"""Samples of a model on the page; all of them are in its samples file."""


def write_reports(output: Path) -> Iterator[str]:
    """Write the report on all models that have results in a folder, and the heatmap of each; yields lines for a console.

    Raises:
        UserError: there are no results, or they cannot be read.
    """
    folders = [path.parent for path in sorted(output.glob(f"*/{RESULTS}"))]
    if not folders:
        raise UserError(f"{output}: holds no results of a model; run without --report-only first")
    results = [_read(folder / RESULTS) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        if result.get("ruler", {}).get("needles"):
            write_bytes(folder / HEATMAP, heatmap_png(result))
    tables = list(make_tables(results))
    differences = compare_settings(results)
    samples = {folder.name: _pick(folder / SAMPLES) for folder in folders}
    write_json(output / "report.json", {result["model"]["name"]: result for result in results})
    write_text(output / "report.md", _markdown(tables, differences))
    write_text(output / "report.html", render_page(results, tables, differences, samples))
    for table in tables:
        if not table.detail:
            yield as_text(_without_empty(table)) + "\n"
    yield from differences
    yield f"report: {output / 'report.html'}"


def _without_empty(table: Table) -> Table:
    """Leave out what a console has no room for: the paper's rows, and columns without a value of ours."""
    rows = [row for row in table.rows if not row.published]
    places = [place for place in range(len(table.head)) if any(row.cells[place].value is not None for row in rows)]
    kept = [type(row)(row.model, [row.cells[place] for place in places]) for row in rows]
    return Table(title=table.title, head=[table.head[place] for place in places], rows=kept, note=table.note)


def compare_settings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which models were asked otherwise than the first, and in what: their numbers are not comparable."""
    first, said = results[0], []
    for other in results[1:]:
        names = sorted(_differences(first["settings"], other["settings"]))
        if names:
            said.append(f"{other['model']['name']} was run with other settings than {first['model']['name']}: {', '.join(names)}")
    return said


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield the dotted names of values that two settings have both, and differ in."""
    for name in first.keys() & other.keys():
        if isinstance(first[name], Mapping):
            yield from _differences(first[name], other[name], f"{before}{name}.")
        elif first[name] != other[name]:
            yield f"{before}{name}"


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not result["model"]["name"] or not isinstance(result["settings"], dict):
            raise ValueError("it names no model")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not results of this command ({error}); remove it, or run its model again") from None
    return result


def _pick(path: Path) -> list[dict[str, Any]]:
    """Pick samples to read: of each task and length (or group) one that is right and one that is wrong, the first of them."""
    picked: dict[tuple[Any, ...], dict[str, Any]] = {}
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                picked.setdefault((row["task"], row.get("length") or 0, row["score"] >= 1, row.get("group") or ""), row)
    rows = [picked[key] for key in sorted(picked, key=lambda key: (-key[1], *key[2:], key[0]))]
    return sorted(rows[:SHOWN_SAMPLES], key=lambda row: (row["task"], row.get("length") or 0))


def _markdown(tables: Sequence[Table], differences: Sequence[str]) -> str:
    legend = f"Scores in percent, ± one standard error. Rows marked {MARK} are the paper's ({SOURCE}), not measured here."
    head = f"# Evaluation\n\n{legend}"
    return "\n\n".join([head, *differences, *map(as_markdown, tables)]) + "\n"
