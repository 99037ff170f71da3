"""What came out of all rounds, as values, Markdown and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evolution.config import BASE, Config, Round
from megatron_longpo.evolution.manifest import Manifest
from megatron_longpo.evolution.report_page import render_page
from megatron_longpo.evolution.report_text import as_markdown
from megatron_longpo.evolution.stages import Stage
from megatron_longpo.evolution.states import DONE
from megatron_longpo.evolution.status import Row, list_states
from megatron_longpo.utils.files import read_json, write_json, write_text

REPORT = "report"
POINTS = 300
"""Points of a curve, at most; more are averaged in groups."""
TRAINING = (
    "loss", "nll_loss", "preference_loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "kl/short_to_long",
)  # fmt: skip
"""Metrics of a training that are reported, where its objective has them."""


def write_report(config: Config, stages: Sequence[Stage], *, at_work: bool | None = None) -> Path:
    """Write ``report.json``, ``report.md`` and ``report.html`` to the output folder; return the page's path.

    Args:
        config: the file.
        stages: its plan.
        at_work: whether a run is at work in the output folder; None: look.

    Raises:
        UserError: the manifest cannot be read.
    """
    report = collect(config, stages, list_states(stages, config.output, at_work=at_work))
    write_json(config.output / f"{REPORT}.json", report)
    write_text(config.output / f"{REPORT}.md", as_markdown(report))
    page = config.output / f"{REPORT}.html"
    write_text(page, render_page(report))
    return page


def collect(config: Config, stages: Sequence[Stage], rows: Sequence[Row]) -> dict[str, Any]:
    """Gather what the stages that are done have left, and how the others stand."""
    manifest = Manifest(config.output)
    done = {row.name for row in rows if row.state == DONE}
    models = [name for name in (BASE, *(one.name for one in config.rounds)) if f"{name}/evaluate" in done]
    results = {name: read_json(config.output / "evaluation" / name / "results.json") for name in models}
    seconds = {row.name: record.seconds for row in rows if (record := manifest.get(row.name)) and record.seconds is not None}
    versions: dict[str, list[str]] = {}
    for stage in stages:
        record = manifest.get(stage.name)
        for package, version in (record.versions if record else {}).items():
            versions.setdefault(package, [])
            versions[package] += [version] if version not in versions[package] else []
    return {
        "model": config.model.path,
        "file": str(config.path),
        "rounds": [_round(config, one, done, seconds) for one in config.rounds],
        "scores": {name: dict(_scores(result)) for name, result in results.items()},
        "stages": [{**_shown(row), "seconds": seconds.get(row.name)} for row in rows],
        "seconds": sum(seconds.values()),
        "versions": versions,
    }


def _shown(row: Row) -> dict[str, str]:
    return {"name": row.name, "state": row.state, "reason": row.reason, "attempts": row.attempts}


def _round(config: Config, one: Round, done: set[str], seconds: Mapping[str, float]) -> dict[str, Any]:
    folder = config.output / one.name
    dataset = read_json(folder / "pairs.json") if f"{one.name}/preprocess" in done else {}
    own = {name.partition("/")[2]: took for name, took in seconds.items() if name.startswith(f"{one.name}/")}
    return {
        "name": one.name,
        "seq_length": one.seq_length,
        "rotary_base": one.rotary_base,
        "documents": one.documents.path,
        "generator": one.generator,
        "start": one.start,
        "reference": one.reference,
        "pairs": dataset.get("num_pairs"),
        "turns": dataset.get("num_turns"),
        "decision": read_json(folder / "decision.json") if f"{one.name}/decide" in done else None,
        "seconds": own,
        "training": training_curves(folder / "trained" / "metrics.jsonl"),
    }


def training_curves(path: Path) -> dict[str, list[float]]:
    """Metrics of a training by name, with the iterations that they are of; many points are averaged in groups."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the last line of a training that was killed
                continue
    size = -(-len(rows) // POINTS)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)] if rows else []
    curves = {}
    for name in ("iteration", *TRAINING):
        if rows and all(isinstance(row.get(name), (int, float)) for row in rows):
            curves[name] = [sum(row[name] for row in group) / len(group) for group in groups]
    return curves if len(curves) > 1 else {}


def _scores(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the scores of a model by what they are called on the page: series, a colon, and what it is of."""
    for length, summary in result.get("ruler", {}).get("lengths", {}).items():
        if summary.get("average_13"):
            yield f"RULER: {length}", summary["average_13"]["score"]
    for name, summary in result.get("infinitebench", {}).get("tasks", {}).items():
        yield f"InfiniteBench: {name}", summary["score"]
    for name, summary in result.get("short", {}).items():
        yield f"Short tasks: {name}", summary["score"]
    for name, summary in result.get("questions", {}).items():
        yield f"{name}: all", summary["score"]
        for group, part in summary.get("groups", {}).items():
            yield f"{name}: {group}", part["score"]
