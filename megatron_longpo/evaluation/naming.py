"""Flags whose values are ``[NAME=]PATH``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_longpo.utils.errors import UserError


def name_paths(flag: str, texts: Sequence[str], name_of: Callable[[Path], str], example: str) -> list[tuple[str, Path]]:
    """Read ``PATH`` or ``NAME=PATH``.

    Args:
        flag: whose values they are.
        texts: its values.
        name_of: names a path that is given without a name.
        example: a name, to show how one is given.

    Raises:
        UserError: two have the same name, or a name cannot be a folder's.
    """
    named = []
    for text in texts:
        name, equals, rest = text.partition("=")
        given = bool(equals) and not Path(text).exists()
        path = Path(rest if given else text)
        named.append((name if given else name_of(path), path))
    names = [name for name, _ in named]
    for name, path in named:
        if not re.fullmatch(r"\w[\w.@+-]*", name):
            raise UserError(f"{flag} {name}={path}: the name must be of letters, digits and . _ - + @")
        if names.count(name) > 1:
            raise UserError(f"{flag}: two are called {name!r}; name them, as in {flag} {example}={path}")
    return named
