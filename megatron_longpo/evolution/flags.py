"""Flags of a command from their mapping in the file, checked by the command's own parser."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megatron_longpo.evolution.config import Flags
from megatron_longpo.utils.errors import UserError

BOOLEANS = {"true": True, "false": False}


def as_words(flags: Flags, parser: argparse.ArgumentParser, place: str, ours: Mapping[str, str]) -> list[str]:
    """Write flags as words of a command line.

    Args:
        flags: from the file.
        parser: the command's.
        place: of the flags in the file, for messages.
        ours: flags that the loop gives, with where their values come from.

    Raises:
        UserError: the command has no such flag, or the loop gives it.
    """
    words: list[str] = []
    options: Mapping[str, argparse.Action] = parser._option_string_actions
    for name, value in flags.items():
        if name in ours:
            raise UserError(f"{place}.{name}: is given by the loop; {ours[name]}")
        if value is not None:
            words += _flag(name, value, options, f"{place}.{name}")
    return words


def _flag(name: str, value: str | list[str], options: Mapping[str, argparse.Action], place: str) -> list[str]:
    flag, negative = f"--{name}", f"--no-{name}"
    if name == "help" or (flag not in options and not (negative in options and value in BOOLEANS)):
        near = difflib.get_close_matches(flag, options, n=1)
        raise UserError(f"{place}: unknown flag{f'; did you mean {near[0][2:]}?' if near else ''}")
    if flag in options and options[flag].nargs != 0:
        values = value if isinstance(value, list) else [value]
        if len(values) == 1 and values[0].startswith("-"):
            return [f"{flag}={values[0]}"]
        return [flag, *values]
    if not isinstance(value, str) or value not in BOOLEANS:
        raise UserError(f"{place}: takes true or false")
    if BOOLEANS[value]:
        return [flag] if flag in options else []
    return [negative] if negative in options else []


def check(parse: Callable[[Sequence[str]], Any], words: Sequence[str], place: str) -> tuple[Any, list[str]]:
    """Let a command's own parser read its words.

    Returns:
        What it has read, and what it warned of.

    Raises:
        UserError: it refuses them.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            return parse(words), list(_warnings(said.getvalue()))
        except SystemExit:
            lines = said.getvalue().strip().splitlines() or ["the command refuses its flags"]
            raise UserError(f"{place}: {lines[-1].partition('error: ')[2] or lines[-1]}") from None
        except UserError as error:
            raise UserError(f"{place}: {' '.join(str(error).split())}") from None


def _warnings(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("warning: "):
            yield line.removeprefix("warning: ")
