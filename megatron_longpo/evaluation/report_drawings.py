"""Plots of results: lines over lengths, bars of short tasks, and the heatmap of needles."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megatron_longpo.evaluation import published
from megatron_longpo.evaluation.scores import DEPTH_BINS
from megatron_longpo.evaluation.short import TASKS as SHORT_TASKS
from megatron_longpo.evaluation.tables import Results, name_length, question_groups
from megatron_longpo.pages.series import STYLES, drawn
from megatron_longpo.pages.svg import HEIGHT, INK, SOFT, WIDTH, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_MAP = "viridis"
DARK_BELOW = 55
"""Cells of fewer percent are dark in this map, and have white text."""


def draw_lengths(results: Sequence[Results], group: str | None) -> str:
    """Draw RULER against length, for all models, with the paper's lines dotted.

    Args:
        results: of the models.
        group: a group of tasks; None: the mean of all of them.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = {name_length(length): length for length in published.LENGTHS}
        for paper in published.BY_LENGTH:
            values = paper.tasks if group is None else paper.groups[group]
            axes.plot(published.LENGTHS, values, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)))
        for place, result in enumerate(results):
            points = _points(result, group)
            if points:
                colour, marker = drawn(place)
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=1.8)
                shown |= {name_length(length): length for length, _ in points}
        axes.set(xscale="log", ylim=(-3, 103), xlabel="tokens", ylabel="score")
        axes.set_xticks(sorted(shown.values()), [name_length(length) for length in sorted(shown.values())])
        axes.minorticks_off()
        axes.tick_params(axis="x", labelrotation=45 if len(shown) > 7 else 0)
        axes.grid(axis="y", linewidth=0.4)

    return render_svg(draw, f"RULER {group or 'mean'} by length", styles=STYLES)


def _points(result: Results, group: str | None) -> list[tuple[int, float]]:
    points = []
    for length, summary in result.get("ruler", {}).get("lengths", {}).items():
        value = summary["average_13"]["score"] if group is None else summary["groups"].get(group)
        if value is not None:
            points.append((int(length), value))
    return points


def draw_short(results: Sequence[Results]) -> str:
    """Draw bars of the short tasks, the models side by side."""
    names = [name for name in SHORT_TASKS if any(name in result.get("short", {}) for result in results)]
    summaries = [[result.get("short", {}).get(name) for name in names] for result in results]
    return _draw_bars([SHORT_TASKS[name].title for name in names], summaries, "accuracy", "short-context accuracy")


def draw_questions(results: Sequence[Results], name: str) -> str:
    """Draw bars of the groups of a file of users' questions, the models side by side."""
    groups = question_groups(results, name)
    found = [result.get("questions", {}).get(name, {"groups": {}})["groups"] for result in results]
    return _draw_bars(groups, [[summary.get(group) for group in groups] for summary in found], "score", f"{name} by group")


def _draw_bars(names: Sequence[str], summaries: Sequence[Sequence[Mapping[str, Any] | None]], label: str, title: str) -> str:
    """Draw a bar with its standard error for each model's summary of each name."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / len(summaries)
        for place, row in enumerate(summaries):
            for column, summary in enumerate(row):
                if summary is not None:
                    axes.bar(
                        column - 0.4 + width * (place + 0.5),
                        summary["score"],
                        width=0.92 * width,
                        color=drawn(place)[0],
                        yerr=summary["stderr"],
                        ecolor=INK,
                        error_kw={"linewidth": 0.8},
                    )
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", labelrotation=45 if len(names) > 7 else 0)
        axes.set(ylabel=label, ylim=(0, 100))
        axes.grid(axis="y", linewidth=0.4)

    return render_svg(draw, title, styles=STYLES)


def draw_heatmap(result: Results) -> str:
    """Draw how often needles were found by length and depth, for the page."""
    name = result["model"]["name"]
    needles = result["ruler"]["needles"]
    wide = len({needle["length"] for needle in needles}) > 8
    size = (2 * WIDTH if wide else WIDTH, HEIGHT + 0.6)
    return render_svg(lambda figure: _heatmap(figure.subplots(), needles), f"needles of {name}", styles=STYLES, size=size)


def heatmap_png(result: Results) -> bytes:
    """Draw the same as a PNG."""
    from matplotlib.figure import Figure

    needles, name = result["ruler"]["needles"], result["model"]["name"]
    lengths = len({needle["length"] for needle in needles})
    figure = Figure(figsize=(max(5.0, 1.6 + 0.8 * lengths), 4.2), dpi=150, layout="constrained")
    figure.suptitle(f"{name}: needles found, %")
    axes = figure.subplots()
    figure.colorbar(_heatmap(axes, needles), ax=axes, shrink=0.8, aspect=24, ticks=(0, 50, 100))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _heatmap(axes: Axes, needles: Sequence[Mapping[str, Any]]) -> Any:
    """Draw a cell for each length and tenth of the depth, with its number in it."""
    lengths = sorted({needle["length"] for needle in needles})
    columns = {length: place for place, length in enumerate(lengths)}
    values = [[float("nan")] * len(lengths) for _ in range(DEPTH_BINS)]
    for needle in needles:
        values[round(needle["depth"] * DEPTH_BINS)][columns[needle["length"]]] = needle["found"]
    mesh = axes.pcolormesh(values, cmap=COLOUR_MAP, vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
    for needle in needles:
        place = columns[needle["length"]] + 0.5, round(needle["depth"] * DEPTH_BINS) + 0.5
        colour = "#ffffff" if needle["found"] < DARK_BELOW else "#1b1f24"
        axes.text(*place, f"{needle['found']:.0f}", ha="center", va="center", fontsize=8, color=colour)
    _label_heatmap(axes, lengths)
    return mesh


def _label_heatmap(axes: Axes, lengths: Sequence[int]) -> None:
    axes.invert_yaxis()
    axes.set_xticks([place + 0.5 for place in range(len(lengths))], [name_length(length) for length in lengths])
    axes.set_yticks([0, DEPTH_BINS / 2, DEPTH_BINS], ["start", "middle", "end"])
    axes.set(xlabel="tokens", ylabel="depth of the needle")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
