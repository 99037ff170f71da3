"""Curves over rounds and over trainings, as SVG to stand in the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from megatron_longpo.pages.series import STYLES, drawn
from megatron_longpo.pages.svg import CHOSEN, HEIGHT, INK, NEUTRAL, REJECTED, SOFT, WIDTH, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS: Sequence[tuple[str, Sequence[tuple[str, str, str]]]] = (
    ("Losses", (("loss", "objective", INK), ("nll_loss", "NLL", NEUTRAL))),
    ("Preference loss", (("preference_loss", "", INK),)),
    (
        "Rewards",
        (("rewards/chosen", "chosen", CHOSEN), ("rewards/rejected", "rejected", REJECTED), ("rewards/margins", "margin", INK)),
    ),
    ("Short-to-long KL, nats a token", (("kl/short_to_long", "", INK),)),
)
"""Plots of a training: title, and metric, label and colour of each curve."""
SMALL = 0.8
"""Four stand side by side, so that they are drawn smaller, and their text is not."""


def draw_scores(title: str, models: Sequence[str], curves: Mapping[str, Sequence[float | None]]) -> str:
    """Draw scores over models, the base first.

    Args:
        title: what they are scores of.
        models: in the order of the rounds.
        curves: by name, a score of each model, or None.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, values in enumerate(curves.values()):
            points = [(number, value) for number, value in enumerate(values) if value is not None]
            colour, marker = drawn(place)
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=1.8)
        axes.set_xticks(range(len(models)), models)
        axes.tick_params(axis="x", labelrotation=45 if len(models) > 6 else 0)
        axes.set(xlim=(-0.3, len(models) - 0.7), ylim=(-3, 103), ylabel="score")
        axes.grid(axis="y", linewidth=0.4)

    return render_svg(draw, f"{title} over rounds", styles=STYLES)


def training_plots(name: str, curves: Mapping[str, Sequence[float]]) -> list[tuple[str, str]]:
    """Draw a round's training: title and SVG of each plot for which there are metrics."""
    found = []
    for title, lines in PLOTS:
        shown = [line for line in lines if line[0] in curves]
        if shown:
            found.append((title, _draw_training(f"{title} of {name}", curves, shown)))
    return found


def _draw_training(label: str, curves: Mapping[str, Sequence[float]], lines: Sequence[tuple[str, str, str]]) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        few = len(curves["iteration"]) <= 30
        for metric, text, colour in lines:
            marker = "o" if few else ""
            axes.plot(curves["iteration"], curves[metric], color=colour, marker=marker, markersize=3, linewidth=1.3, label=text)
        _label(axes, curves["iteration"])
        if lines[0][0].startswith("rewards"):
            axes.axhline(0, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        if len(lines) > 1:
            above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": len(lines), "columnspacing": 1.0}
            axes.legend(frameon=False, fontsize=9, labelcolor="linecolor", handlelength=1.2, borderpad=0.1, **above)

    return render_svg(draw, label, styles=STYLES, size=(WIDTH * SMALL, HEIGHT * SMALL))


def _label(axes: Axes, iterations: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="iteration")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if len(iterations) == 1:
        axes.set_xlim(iterations[0] - 1, iterations[0] + 1)
    axes.grid(axis="y", linewidth=0.4)
