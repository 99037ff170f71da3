"""Plots of a run's statistics as SVG to stand in a page, in the colours of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_longpo.pages.svg import CHOSEN, INK, NEUTRAL, REJECTED, SOFT, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGARITHMIC_FROM = 30.0
"""Ratio of the longest to the shortest answer from which both axes are logarithmic."""


def histogram(spread: dict[str, Any], label: str, count_of: str) -> str:
    """Draw how one thing is spread."""
    return render_svg(lambda figure: _draw_histogram(figure.subplots(), spread, NEUTRAL, label, count_of), label)


def answer_histograms(chosen: dict[str, Any], rejected: dict[str, Any]) -> str:
    """Draw the lengths of chosen and of rejected answers, one above the other."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _draw_histogram(upper, chosen, CHOSEN, "", "chosen")
        _draw_histogram(lower, rejected, REJECTED, "tokens of an answer", "rejected")

    return render_svg(draw, "lengths of chosen and rejected answers")


def margin_histogram(margins: dict[str, Any]) -> str:
    """Draw how log-prob margins are spread around zero."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_histogram(axes, margins, NEUTRAL, "log p(chosen) - log p(rejected) given the chunk, in nats", "turns")
        axes.axvline(0, color=INK, linewidth=1)

    return render_svg(draw, "log-prob margins")


def turns_bars(turns_per_record: dict[str, int]) -> str:
    """Draw how many records have how many turns."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar([int(turns) for turns in turns_per_record], list(turns_per_record.values()), width=0.7, color=NEUTRAL)
        _label(axes, "turns of a record", "records")
        axes.set_xticks([int(turns) for turns in turns_per_record][:: 1 + len(turns_per_record) // 12])

    return render_svg(draw, "turns of a record")


def answer_scatter(lengths: list[list[int]]) -> str:
    """Draw the length of each chosen answer against that of its rejected one."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        chosen, rejected = zip(*lengths, strict=True)
        lowest, highest = max(1, min(chosen + rejected)), max(chosen + rejected)
        axes.plot([lowest, highest], [lowest, highest], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.scatter(chosen, rejected, s=9 if len(lengths) > 100 else 25, color=CHOSEN, alpha=0.5, linewidths=0)
        if highest / lowest >= LOGARITHMIC_FROM:
            axes.set(xscale="log", yscale="log")
        _label(axes, "chosen answer, tokens", "rejected answer, tokens")
        axes.grid(linewidth=0.4)
        axes.text(0.02, 0.98, "rejected longer", transform=axes.transAxes, va="top", color=SOFT)
        axes.text(0.98, 0.04, "chosen longer", transform=axes.transAxes, ha="right", color=SOFT)

    return render_svg(draw, "chosen against rejected lengths")


def _draw_histogram(axes: Axes, spread: dict[str, Any], colour: str, label: str, count_of: str) -> None:
    axes.stairs(spread["counts"], spread["edges"], fill=True, color=colour)
    axes.axvline(spread["median"], color=INK, linewidth=1, linestyle=(0, (2, 2)))
    _label(axes, label, count_of)


def _label(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set(xlabel=x, ylabel=y)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(nbins=5, integer=axis is axes.yaxis))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", linewidth=0.4)
