"""A figure of matplotlib as SVG to stand in a page, in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def render_svg(
    draw: Callable[[Figure], None],
    label: str,
    *,
    styles: Mapping[str, str] = STYLE_OF,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> str:
    """Draw a figure and return its ``<svg>`` element, which scales with the page.

    Args:
        draw: draws on an empty figure.
        label: what it shows, for those who cannot see it; no text of a document. No two plots of a page have the same.
        styles: the page's variable for each colour that is drawn with.
        size: width and height in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    opening = rf'<svg viewBox="0 0 {72 * size[0]:g} {72 * size[1]:g}" role="img" aria-label="{label}">'
    svg = re.sub(r"<svg\b[^>]*>", opening, svg[svg.index("<svg") :], count=1)
    name = re.sub(r"\W+", "-", label)
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{name}-", svg)  # names are shared by all plots of a page
    for colour, style in styles.items():
        svg = svg.replace(colour, f"var({style})")
    return svg
