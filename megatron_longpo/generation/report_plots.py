"""Plots of a run's statistics as SVG to stand in a page, in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.3, 2.6
"""Inches. Small, since a phone shows a plot no wider, and text is not to shrink with it."""

INK, SOFT, LINE, NEUTRAL, CHOSEN, REJECTED = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05", "#0a0a06"
STYLE_OF = {INK: "--ink", SOFT: "--soft", LINE: "--line", NEUTRAL: "--neutral", CHOSEN: "--chosen", REJECTED: "--rejected"}
"""What is drawn in these colours takes the page's, which has a light and a dark set of them."""

SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
    "svg.hashsalt": "report",  # the same statistics give the same bytes
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the page's own font takes its place
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
LOGARITHMIC_FROM = 30.0
"""Ratio of the longest to the shortest answer from which both axes are logarithmic."""


def histogram(spread: dict[str, Any], label: str, count_of: str) -> str:
    """Draw how one thing is spread."""
    return _render(lambda figure: _draw_histogram(figure.subplots(), spread, NEUTRAL, label, count_of), label)


def answer_histograms(chosen: dict[str, Any], rejected: dict[str, Any]) -> str:
    """Draw the lengths of chosen and of rejected answers, one above the other."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _draw_histogram(upper, chosen, CHOSEN, "", "chosen")
        _draw_histogram(lower, rejected, REJECTED, "tokens of an answer", "rejected")

    return _render(draw, "lengths of chosen and rejected answers")


def margin_histogram(margins: dict[str, Any]) -> str:
    """Draw how log-prob margins are spread around zero."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_histogram(axes, margins, NEUTRAL, "log p(chosen) - log p(rejected) given the chunk, in nats", "turns")
        axes.axvline(0, color=INK, linewidth=1)

    return _render(draw, "log-prob margins")


def turns_bars(turns_per_record: dict[str, int]) -> str:
    """Draw how many records have how many turns."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar([int(turns) for turns in turns_per_record], list(turns_per_record.values()), width=0.7, color=NEUTRAL)
        _label(axes, "turns of a record", "records")
        axes.set_xticks([int(turns) for turns in turns_per_record][:: 1 + len(turns_per_record) // 12])

    return _render(draw, "turns of a record")


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

    return _render(draw, "chosen against rejected lengths")


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


def _render(draw: Callable[[Figure], None], label: str) -> str:
    """Draw a figure and return its ``<svg>`` element, which scales with the page.

    Args:
        draw: draws on an empty figure.
        label: what it shows, for those who cannot see it; no text of a document.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    opening = rf'<svg viewBox="0 0 {72 * WIDTH:g} {72 * HEIGHT:g}" role="img" aria-label="{label}">'
    svg = re.sub(r"<svg\b[^>]*>", opening, svg[svg.index("<svg") :], count=1)
    name = re.sub(r"\W+", "-", label)
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{name}-", svg)  # names are shared by all plots of a page
    for colour, style in STYLE_OF.items():
        svg = svg.replace(colour, f"var({style})")
    return svg
