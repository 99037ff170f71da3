"""A whole page: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_longpo.pages.markup import Html, element
from megatron_longpo.pages.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser refuses scripts and fetches even if a text should get through as markup."""


def render(title: str, sections: Iterable[Html], css: str = "") -> str:
    """Build a page that opens from disk.

    Args:
        title: in the browser's tab, and the page's heading.
        sections: what stands below the heading.
        css: rules beside the shared style sheet.
    """
    head = (
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", title),
        element("style", Html(CSS + css)),
    )
    body = element("body", element("main", element("h1", title), *sections))
    return f'<!doctype html>\n<html lang="en">{element("head", *head)}{body}</html>\n'
