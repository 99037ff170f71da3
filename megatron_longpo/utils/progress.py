"""Progress of what takes more than a few seconds: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

LINE_SECONDS = 30.0
"""Between two lines, and before the first: what is over sooner says nothing."""


class _Lines:
    """Turns what redraws a line into lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(
    iterable: Iterable[Any] | None = None, *, shown: bool = True, stream: TextIO | None = None, **options: Any
) -> Any:
    """Return a tqdm bar with the time left.

    Args:
        iterable: what is gone through, if anything is.
        shown: silent, if not: on other processes, for instance.
        stream: where it stands; default: standard error.
        options: of tqdm.
    """
    from tqdm import tqdm

    stream = stream or sys.stderr
    if not stream.isatty():
        lines = {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 1}
        options |= {"file": _Lines(stream), "ascii": True, **lines}
    else:
        options |= {"file": stream}
    return tqdm(iterable, disable=not shown, **options)
