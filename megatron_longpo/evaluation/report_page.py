"""The report as a page: one file, no script, nothing fetched, every text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_longpo.evaluation import ruler
from megatron_longpo.evaluation.published import BY_LENGTH, SOURCE
from megatron_longpo.evaluation.report_drawings import draw_heatmap, draw_lengths, draw_questions, draw_short
from megatron_longpo.evaluation.tables import MARK, Results, Row, Table, question_groups, question_names
from megatron_longpo.pages import page, series
from megatron_longpo.pages.markup import Html, element

OWN_CSS = """
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
tr.published td { color: var(--soft); }
tr.published td:first-child { font-style: italic; }
tr.published .tag { font-style: normal; font-size: .7rem; margin-left: 6px; padding: 0 7px; font-weight: 400; }
main > .card + .card, details .card { margin-top: 12px; }
td:first-child { min-width: 9em; }
.tag { white-space: nowrap; }
.error { color: var(--soft); font-size: .8em; }
.warning { border-color: var(--rejected); }
.sample-head { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 8px; }
"""
TITLE = "Evaluation"
LONGEST_SHOWN = 1500
"""Characters of a question or an answer on the page."""


def render_page(
    results: Sequence[Results],
    tables: Sequence[Table],
    differences: Sequence[str],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Build the page.

    Args:
        results: of the models.
        tables: what `tables.make_tables` makes of them.
        differences: warnings that models were asked otherwise.
        samples: some of each model's samples, to read.
    """
    published = f"Scores are percentages, ± one standard error. Rows marked {MARK} and dotted lines are the paper's ({SOURCE}): "
    sections = (
        element("p", published + "they were not measured here, and prompts and texts differ.", class_="soft"),
        *(element("p", text, class_="card warning") for text in differences),
        _figures(results),
        *_plots(results),
        element("h2", "Tables"),
        *(_table(table) for table in tables),
        *_samples(samples),
        element("h2", "The runs"),
        *(_settings(result) for result in results),
    )
    return page.render(TITLE, sections, series.CSS + OWN_CSS)


def _figures(results: Sequence[Results]) -> Html:
    """Show each model's most important numbers."""
    shown = []
    for place, result in enumerate(results):
        name = element("span", series.swatch(place), result["model"]["name"], class_="small")
        for value, label in _headlines(result):
            shown.append(
                element("div", name, element("b", value), element("span", label, class_="soft small"), class_="card figure")
            )
    return element("div", *shown, class_="figures")


def _headlines(result: Results) -> Iterator[tuple[str, str]]:
    if "ruler" in result:
        average = result["ruler"]["mean"]["average_13"]
        if average:
            yield (
                f"{average['score']:.1f}",
                f"RULER, mean of {len(average['covers'])} tasks over {len(result['ruler']['lengths'])} lengths",
            )
    if result.get("infinitebench", {}).get("average") is not None:
        yield f"{result['infinitebench']['average']:.1f}", "InfiniteBench, mean of three"
    if "mmlu" in result.get("short", {}):
        yield f"{result['short']['mmlu']['score']:.1f}", "MMLU"
    for name, summary in result.get("questions", {}).items():
        yield f"{summary['score']:.1f}", name


def _legend(results: Sequence[Results], *, dotted: bool) -> Html:
    notes = [f"dotted: {MARK}, {', '.join(paper.model for paper in BY_LENGTH)}"] if dotted else []
    return series.legend([result["model"]["name"] for result in results], *notes)


def _plots(results: Sequence[Results]) -> Iterator[Html]:
    """Show what there is to plot."""
    if any("ruler" in result for result in results):
        yield element("h2", "Long context")
        yield _legend(results, dotted=True)
        drawings = [("Mean of the tasks", None), *((name, name) for name in ruler.GROUPS if _has_group(results, name))]
        yield _grid([(title, draw_lengths(results, group)) for title, group in drawings])
        heatmaps = [
            (f"Needles found, %: {result['model']['name']}", draw_heatmap(result)) for result in results if _needles(result)
        ]
        if heatmaps:
            yield element("h2", "Needles by length and depth")
            yield _grid(heatmaps)
    if any("short" in result for result in results):
        yield element("h2", "Short context")
        yield _legend(results, dotted=False)
        yield _grid([("Accuracy", draw_short(results))])
    grouped = [name for name in question_names(results) if question_groups(results, name)]
    if grouped:
        yield element("h2", "Questions by group")
        yield _legend(results, dotted=False)
        yield _grid([(name, draw_questions(results, name)) for name in grouped])


def _needles(result: Results) -> bool:
    return bool(result.get("ruler", {}).get("needles"))


def _has_group(results: Sequence[Results], name: str) -> bool:
    return any(name in result.get("ruler", {}).get("mean", {}).get("groups", {}) for result in results)


def _grid(drawings: Sequence[tuple[str, str]]) -> Html:
    shown = [element("figure", element("h3", title), Html(svg), class_="card") for title, svg in drawings]
    return element("div", *shown, class_="grid")


def _table(table: Table) -> Html:
    head = element("tr", element("th", ""), *(element("th", name, scope="col") for name in table.head))
    rows = [_row(row) for row in table.rows]
    note = element("p", table.note, class_="soft small") if table.note else None
    content = element("div", element("table", head, *rows), class_="scroll")
    if table.detail:
        return element("details", element("summary", table.title), content, note, class_="card")
    return element("div", element("h3", table.title), content, note, class_="card")


def _row(row: Row) -> Html:
    tag = element("span", MARK, class_="tag") if row.published else None
    cells = []
    for cell in row.cells:
        if cell.value is None:
            cells.append(element("td", "-", class_="soft"))
        else:
            error = element("span", f" ±{cell.error:.1f}", class_="error") if cell.error else None
            cells.append(element("td", f"{cell.value:.1f}", error))
    named = {"class_": "published"} if row.published else {}
    return element("tr", element("td", row.model, tag), *cells, **named)


def _samples(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Html]:
    """Show some samples of each model, folded."""
    if any(samples.values()):
        yield element("h2", "Samples")
        yield element("p", "Of each task and length a right and a wrong answer, as far as there is room.", class_="soft small")
    for model, rows in samples.items():
        if rows:
            shown = (_sample(row) for row in rows)
            yield element("details", element("summary", f"{model}: {len(rows)} samples"), *shown, class_="card")


def _sample(row: Mapping[str, Any]) -> Html:
    place = f"{row['length']:,} tokens" if "length" in row else row.get("group")
    tags = [row["task"], place, f"score {100 * row['score']:.0f}"]
    shown = [element("span", tag, class_="tag") for tag in tags if tag]
    given = row.get("answer")
    if given is None:  # a short task: the choice with the highest log-prob
        best = max(range(len(row["logps"])), key=row["logps"].__getitem__)
        given = row["choices"][best]
    expected = row["expected"]
    right = ", ".join(map(str, expected)) if isinstance(expected, list) else row["choices"][expected]
    return element(
        "section",
        element("div", *shown, class_="sample-head"),
        element("div", _shorten(row["question"]), class_="text question") if row["question"] else None,
        element("div", element("span", "right: ", class_="soft"), _shorten(right), class_="text small"),
        element("div", element("span", "given: ", class_="soft"), _shorten(given) or "(nothing)", class_="text small"),
        class_="card",
    )


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} [... {len(text) - LONGEST_SHOWN} characters more]"


def _settings(result: Results) -> Html:
    """Show a run's settings, folded."""
    values = {"model": result["model"], "settings": result["settings"], "run": result["run"]}
    rows = [element("tr", *(element("td", element("bdi", text)) for text in pair)) for pair in _flat(values)]
    table = element("table", *rows, class_="settings small")
    return element("details", element("summary", f"{result['model']['name']}: model, settings, versions"), table, class_="card")


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
