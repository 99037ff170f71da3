"""What every reader of a user's JSON Lines needs."""

from __future__ import annotations

import collections
from typing import Any

SHOWN_CHARACTERS = 300
"""Of a reason: what it quotes may be as long as the line."""


class LineError(ValueError):
    """A line that is not what it should be. The message is ``field: what and cure``, on one line."""

    def __init__(self, reason: str) -> None:
        """Say why, at a length that people read."""
        clipped = reason if len(reason) <= SHOWN_CHARACTERS else f"{reason[:SHOWN_CHARACTERS]}..."
        super().__init__(" ".join(clipped.split()))


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python would silently keep the last of two fields with one name; an ``object_pairs_hook``."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the field {twice!r} occurs twice")
    return fields


def kind_of(value: object) -> str:
    """Say in words what a JSON value is."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else "an empty list" if value == [] else names[type(value)]
