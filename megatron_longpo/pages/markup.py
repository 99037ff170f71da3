"""HTML out of text that nobody vouches for: whatever is not `Html` is escaped."""

from __future__ import annotations

import html
import re

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Control characters, lone surrogates and codes that are no characters: HTML has no way to write them."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Write a text so that it is shown as it is and nothing else; what cannot be shown becomes U+FFFD."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", lines), quote=True))


def element(tag: str, *children: str | None, **attributes: str) -> Html:
    """Build an element.

    Args:
        tag: its name.
        children: `Html` as it is, other text escaped, None left out.
        attributes: escaped; ``class_`` stands for ``class``.
    """
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None)
    named = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{named}>{inside}</{tag}>")
