"""Flags whose values are ``[NAME=]PATH``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from megatron_longpo.utils.errors import UserError


def name_paths(
    flag: str, texts: Sequence[str], name_of: Callable[[Path], str], example: str, reserved: Collection[str] = ()
) -> list[tuple[str, Path]]:
    """Read ``PATH`` or ``NAME=PATH``.

    Args:
        flag: what stands before each of them on the command line, such as ``"--model "``.
        texts: its values.
        name_of: names a path that is given without a name.
        example: a name, to show how one is given.
        reserved: names that mean something else.

    Raises:
        UserError: two have the same name, or a name is reserved or cannot be a folder's.
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
            raise UserError(f"{flag}{name}={path}: the name must be of letters, digits and . _ - + @")
        if name in reserved:
            raise UserError(f"{flag}{path}: {name!r} is the name of a task; name it otherwise, as in {flag}{example}={path}")
        if names.count(name) > 1:
            raise UserError(f"{flag}{path}: two are called {name!r}; name them, as in {flag}{example}={path}")
    return named
