"""Colours of what is compared: each series has one of its own, in plots and in words."""

from __future__ import annotations

from megatron_longpo.pages.markup import Html, element
from megatron_longpo.pages.svg import STYLE_OF

SERIES = tuple(f"#0b0b{number:02x}" for number in range(1, 9))
"""What is drawn in these colours takes the page's; from the ninth series on they come again."""
STYLES = {**STYLE_OF, **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)}}
MARKERS = "osD^vP*X"
CSS = """
:root { --series-1: #1f6fc4; --series-2: #c2561a; --series-3: #2a8a57; --series-4: #8a4fbf; --series-5: #b8860b;
  --series-6: #c2396f; --series-7: #2a8c99; --series-8: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --series-1: #6cb0f5; --series-2: #f0985f; --series-3: #62c792; --series-4: #c09af0;
  --series-5: #e0b84c; --series-6: #f08ab4; --series-7: #6cc8d4; --series-8: #a2abb8; } }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 12px 0; }
"""
"""Rules for a page that shows series."""


def drawn(place: int) -> tuple[str, str]:
    """Colour and marker of a series in a plot."""
    return SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]


def swatch(place: int) -> Html:
    """A small square in a series' colour."""
    colour = STYLES[SERIES[place % len(SERIES)]]
    return element("i", style=f"background: var({colour}); display: inline-block; width: 10px; height: 10px; margin-right: 6px")


def legend(names: list[str], *notes: str) -> Html:
    """Names of series with their colours; ``notes`` stand behind them."""
    entries = [element("span", swatch(place), name) for place, name in enumerate(names)]
    return element("div", *entries, *(element("span", note, class_="soft") for note in notes), class_="legend small")
