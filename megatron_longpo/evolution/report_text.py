"""Words and numbers of the report that its page and its Markdown share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("round", "length", "RoPE base", "pairs by", "from", "reference", "pairs", "long score", "short score", "decision", "time")


def duration(seconds: float | None) -> str:
    """A time as people say it."""
    if seconds is None:
        return "-"
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def change(scores: Mapping[str, Any] | None) -> str:
    """A score before and after."""
    return f"{scores['before']:.1f} to {scores['after']:.1f}" if scores else "-"


def verdict(decision: Mapping[str, Any] | None) -> str:
    """What was decided."""
    return "-" if decision is None else "go on" if decision["continue"] else "stop"


def round_cells(one: Mapping[str, Any]) -> list[str]:
    """A round's row, as in `HEAD`."""
    decision = one["decision"] or {}
    pairs = "-" if one["pairs"] is None else f"{one['pairs']:,}"
    length, base = f"{one['seq_length']:,}", one["rotary_base"] or "the model's"
    models = [one[role] for role in ("generator", "start", "reference")]
    scores = [change(decision.get(name)) for name in ("long", "short")]
    took = duration(sum(one["seconds"].values())) if one["seconds"] else "-"
    return [one["name"], length, base, *models, pairs, *scores, verdict(one["decision"]), took]


def score_table(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Scores as a table: a row for each, a column for each model."""
    models = list(scores)
    names = list(dict.fromkeys(name for some in scores.values() for name in some))
    rows = [[name, *(f"{scores[model][name]:.1f}" if name in scores[model] else "-" for model in models)] for name in names]
    return ["score", *models], rows


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report's tables."""
    parts = [f"# Rounds of {report['model']}", _table(HEAD, [round_cells(one) for one in report["rounds"]])]
    for one in report["rounds"]:
        if one["decision"]:
            parts.append(f"{one['name']}: {verdict(one['decision'])}; {'; '.join(one['decision']['reasons'])}.")
    if report["scores"]:
        parts += ["## Scores", _table(*score_table(report["scores"]))]
    rows = [[stage["name"], stage["state"], stage["attempts"], duration(stage["seconds"])] for stage in report["stages"]]
    parts += ["## Stages", _table(("stage", "state", "attempts", "time"), rows)]
    parts.append("; ".join(f"{name} {', '.join(found)}" for name, found in report["versions"].items()))
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
