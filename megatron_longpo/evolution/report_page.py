"""The report as a page: one file, no script, nothing fetched, every text escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_longpo.evolution.report_plots import draw_scores, training_plots
from megatron_longpo.evolution.report_text import HEAD, duration, round_cells, score_table, verdict
from megatron_longpo.evolution.states import DONE
from megatron_longpo.pages import page, series
from megatron_longpo.pages.markup import Html, element

OWN_CSS = """
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
main > .card + .card, details.card { margin-top: 12px; }
.four { grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); }
.decision { margin: 8px 0 0; padding-left: 1.2em; }
.rounds td:first-child { font-weight: 600; }
.stop { color: var(--rejected); }
.legend { margin: 0 0 6px; }
"""
MOST_CURVES = 8
"""Curves of a plot: as many as there are colours. The table has all scores."""


def render_page(report: Mapping[str, Any]) -> str:
    """Build the page from what `report.collect` returns."""
    sections = (
        element("p", f"{report['model']}, by {report['file']}. Scores are percentages.", class_="soft"),
        _figures(report),
        element("h2", "Rounds"),
        _rounds(report["rounds"]),
        *_scores(report["scores"]),
        *_trainings(report["rounds"]),
        element("h2", "Stages"),
        _stages(report["stages"]),
        element("p", *_versions(report["versions"]), class_="soft small"),
    )
    return page.render("Self-evolution", sections, series.CSS + OWN_CSS)


def _figures(report: Mapping[str, Any]) -> Html:
    """Show the most important numbers."""
    decided = [one for one in report["rounds"] if one["decision"]]
    figures = [(f"{len(decided)} of {len(report['rounds'])}", "rounds decided")]
    for name in ("long", "short"):
        scores = [one["decision"][name] for one in decided if one["decision"][name]]
        if scores:
            figures.append((f"{scores[-1]['after']:.1f}", f"{name} score of round {decided[-1]['name']}"))
    figures.append((duration(report["seconds"]), "in all stages, as they ran last"))
    shown = [
        element("div", element("b", value), element("span", label, class_="soft small"), class_="card figure")
        for value, label in figures
    ]
    return element("div", *shown, class_="figures")


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> Html:
    """Show a row for each round, and the reasons of the decisions."""
    rows = [_row("td", round_cells(one)) for one in rounds]
    table = element("table", _row("th", HEAD), *rows, class_="rounds")
    reasons = [
        element(
            "li",
            element("b", f"{one['name']}: {verdict(one['decision'])}", class_="" if one["decision"]["continue"] else "stop"),
            f", {'; '.join(one['decision']['reasons'])}",
        )
        for one in rounds
        if one["decision"]
    ]
    listed = element("ul", *reasons, class_="decision small") if reasons else None
    return element("div", element("div", table, class_="scroll"), listed, class_="card")


def _row(tag: str, cells: Sequence[str]) -> Html:
    return element("tr", *(element(tag, cell) for cell in cells))


def _scores(scores: Mapping[str, Mapping[str, float]]) -> Iterator[Html]:
    """Show curves over rounds, and all scores as a table."""
    if not scores:
        return
    yield element("h2", "Scores over rounds")
    models = list(scores)
    families: dict[str, dict[str, list[float | None]]] = {}
    for name in dict.fromkeys(name for some in scores.values() for name in some):
        family, _, member = name.partition(": ")
        families.setdefault(family, {})[member] = [scores[model].get(name) for model in models]
    cards = []
    for family, curves in families.items():
        shown = dict(list(curves.items())[:MOST_CURVES])
        drawing = Html(draw_scores(family, models, shown))
        cards.append(element("figure", element("h3", family), series.legend(list(shown)), drawing, class_="card"))
    yield element("div", *cards, class_="grid")
    head, rows = score_table(scores)
    table = element("table", _row("th", head), *(_row("td", row) for row in rows))
    yield element("details", element("summary", "All scores"), element("div", table, class_="scroll"), class_="card")


def _trainings(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    """Show the curves of each round's training."""
    for one in rounds:
        if one["training"]:
            yield element("h2", f"Training of round {one['name']}")
            plots = training_plots(one["name"], one["training"])
            cards = [element("figure", element("h3", title), Html(svg), class_="card") for title, svg in plots]
            yield element("div", *cards, class_="grid four")


def _stages(stages: Sequence[Mapping[str, Any]]) -> Html:
    rows = []
    for stage in stages:
        state = f"{stage['state']} ({stage['reason']})" if stage["reason"] else stage["state"]
        rows.append(_row("td", [stage["name"], state, stage["attempts"] or "-", duration(stage["seconds"])]))
    table = element("table", _row("th", ("stage", "state", "attempts", "time")), *rows)
    done = sum(stage["state"] == DONE for stage in stages)
    summary = element("summary", f"{done} of {len(stages)} stages are done")
    return element("details", summary, element("div", table, class_="scroll"), class_="card")


def _versions(versions: Mapping[str, Sequence[str]]) -> list[str]:
    return [", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())]
