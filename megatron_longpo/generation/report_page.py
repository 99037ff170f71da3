"""A run's statistics as a page to read: one file, no script, nothing fetched, every text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.generation import report_plots as plots
from megatron_longpo.generation.report_samples import show_dropped_samples, show_samples
from megatron_longpo.pages import page
from megatron_longpo.pages.markup import Html, element
from megatron_longpo.utils.files import write_bytes

NAMES = {
    "document": "document",
    "chunk": "chunk",
    "question": "question",
    "chosen": "chosen answer",
    "rejected": "rejected answer",
}
LEVELS = {"document": "Documents", "chunk": "Chunks", "turn": "Turns", "other": "Other"}


def write_report(statistics: Mapping[str, Any], json_path: Path, html_path: Path) -> None:
    """Write statistics as JSON and as a page, each under a temporary name that is then renamed.

    Args:
        statistics: what `statistics.collect` returns.
        json_path: the numbers, for programs.
        html_path: the page, for people: opens from disk.
    """
    # A lone surrogate has no UTF-8; written as \\udcXX it is the same character to a reader of JSON.
    numbers = json.dumps(statistics, ensure_ascii=False, indent=1, default=str).encode("utf-8", "backslashreplace")
    page = render_page(statistics).encode()
    for path, content in ((json_path, numbers), (html_path, page)):
        write_bytes(path, content + b"\n")


def render_page(statistics: Mapping[str, Any]) -> str:
    """Build the page."""
    sections = (
        _figures(statistics),
        element("h2", "Lengths"),
        _numbers(statistics),
        _plots(statistics),
        element("h2", "What was dropped"),
        _drops(statistics["drops"]),
        *show_samples(statistics["samples"], statistics["turns"]),
        *show_dropped_samples(statistics["dropped_samples"], statistics["dropped_turns"]),
        element("h2", "The run"),
        _settings(statistics["run"]),
    )
    return page.render("Preference pairs: report", sections)


def _figures(statistics: Mapping[str, Any]) -> Html:
    """Show the most important numbers."""
    turns, cut_off, longer = statistics["turns"], statistics["cut_off"], statistics["longer"]
    figures = [
        (f"{statistics['records']:,}", "records: documents with their turns"),
        (f"{statistics['parts']:,}", "records hold a part of their document, which is too long for --seq-length"),
        (f"{turns:,}", "turns: questions with a chosen and a rejected answer"),
        (f"{statistics['dropped_turns']:,}", "turns dropped"),
        (_share(longer["chosen"], sum(longer.values())), "of turns have the longer answer chosen"),
        (f"{cut_off['chosen']:,} | {cut_off['rejected']:,}", "answers cut off by the token limit: chosen | rejected"),
    ]
    if verifier := statistics["verifier"]:
        judged = verifier["judged"]
        figures.append((_share(verifier["chosen_answers"], judged), f"of {judged:,} judged chosen answers answer the question"))
        figures.append((_share(verifier["chosen_better"], judged), f"of {judged:,} judged pairs have the better answer chosen"))
    if margins := statistics["margins"]:
        count = margins["count"]
        figures.append((_share(margins["positive"], count), f"of {count:,} scored pairs have the more probable answer chosen"))
    return element("div", *(_figure(value, label) for value, label in figures), class_="figures")


def _figure(value: str, label: str) -> Html:
    return element("div", element("b", value), element("span", label, class_="soft small"), class_="card figure")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"


def _numbers(statistics: Mapping[str, Any]) -> Html:
    """Show each distribution as a row."""
    heads = ("", "count", "minimum", "median", "mean", "maximum")
    rows = [element("tr", *(element("th", head, scope="col") for head in heads))]
    spreads = [(NAMES[name], spread) for name, spread in statistics["lengths"].items()]
    if statistics["margins"]:
        spreads.append(("log-prob margin", statistics["margins"]))
    for name, spread in spreads:
        values = (spread["count"], spread["minimum"], spread["median"], spread["mean"], spread["maximum"])
        head = element("td", name, element("span", f", {spread['unit']}", class_="soft"))
        rows.append(element("tr", head, *(element("td", _number(value)) for value in values)))
    return element("div", element("div", element("table", *rows), class_="scroll"), class_="card")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _plots(statistics: Mapping[str, Any]) -> Html:
    """Show what there is to plot."""
    shown = [element("figure", element("h3", title), Html(svg), class_="card") for title, svg in _drawn(statistics)]
    note = element("p", "Dotted lines: medians.", class_="soft small") if shown else None
    return element("div", element("div", *shown, class_="grid"), note)


def _drawn(statistics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Draw the plots for which there are numbers."""
    lengths = statistics["lengths"]
    if statistics["turns_per_record"]:
        yield "Turns of a record", plots.turns_bars(statistics["turns_per_record"])
    for name, count_of in (("document", "documents"), ("chunk", "turns"), ("question", "turns")):
        if name in lengths:
            yield f"{name.capitalize()}s", plots.histogram(lengths[name], f"tokens of a {name}", count_of)
    if "chosen" in lengths and "rejected" in lengths:
        yield "Answers", plots.answer_histograms(lengths["chosen"], lengths["rejected"])
    if points := statistics["answer_lengths"]:
        turns = statistics["turns"]
        some = f", {len(points):,} of {turns:,} turns" if len(points) < turns else ""
        yield f"Chosen against rejected{some}", plots.answer_scatter(points)
    if statistics["margins"]:
        yield "Log-prob margins", plots.margin_histogram(statistics["margins"])


def _drops(drops: Mapping[str, Mapping[str, int]]) -> Html:
    """Show how often each reason dropped something, with bars."""
    most = max((count for reasons in drops.values() for count in reasons.values()), default=0)
    if not most:
        return element("p", "Nothing.", class_="soft")
    lists = []
    for level, reasons in drops.items():
        if reasons:
            rows = [_bar(reason, count, most) for reason, count in reasons.items()]
            head = element("h3", f"{LEVELS[level]}: {sum(reasons.values()):,}")
            lists.append(element("div", head, element("div", *rows, class_="bars"), class_="card"))
    return element("div", *lists, class_="grid")


def _bar(reason: str, count: int, most: int) -> Html:
    bar = element("span", element("i", style=f"width: {100 * count / most:.1f}%"), class_="bar")
    return element("div", element("bdi", reason), element("span", f"{count:,}"), bar, class_="row")


def _settings(run: Mapping[str, Any]) -> Html:
    """Show settings, engines and costs, folded."""
    rows = [element("tr", *(element("td", element("bdi", text)) for text in pair)) for pair in _flat(run)]
    table = element("table", *rows, class_="settings small")
    return element("details", element("summary", "Settings, engines and costs"), table, class_="card")


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings with their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
