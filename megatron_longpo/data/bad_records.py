"""Lines that are no records: the end of the run, or a list of them in a file beside the dataset."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Literal, TextIO

from megatron_longpo.data.scan import Scan
from megatron_longpo.utils.errors import UserError

SHOWN = 10
"""Bad lines that are printed; the file has all."""
OnBadRecord = Literal["fail", "skip"]


class BadRecords:
    """Takes the ranges of all inputs in order, and deals with their bad lines. A context manager."""

    def __init__(self, path: Path, on_bad_record: OnBadRecord) -> None:
        """List them in a JSON Lines file; or, with ``fail``, raise at the first, and touch no file."""
        self._path = path
        self._temporary = path.with_name(f"{path.name}.tmp")
        self._fatal = on_bad_record == "fail"
        self._stream: TextIO | None = None
        self._lines_before = 0
        self._count = 0

    def add(self, scan: Scan) -> None:
        """Take the next range.

        Raises:
            UserError: it has a bad line, and that is fatal.
        """
        if scan.start == 0:
            self._lines_before = 0
        for number, reason in scan.problems():
            line = self._lines_before + number
            if self._fatal:
                raise UserError(f"{scan.path}:{line}: {reason}")
            self._count += 1
            if self._count <= SHOWN:
                print(f"skipped {scan.path}:{line}: {reason}", file=sys.stderr)
            if self._stream is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._temporary.open("w", encoding="ascii")
            self._stream.write(json.dumps({"file": scan.path, "line": line, "reason": reason}) + "\n")
        self._lines_before += scan.num_lines

    def __enter__(self) -> BadRecords:
        """Nothing is written yet."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Put the list in its place, or take away that of an earlier run."""
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        if kind is not None or self._fatal:
            self._temporary.unlink(missing_ok=True)
        elif self._count:
            os.replace(self._temporary, self._path)
            print(f"skipped {self._count} lines that are no records; all are listed in {self._path}", file=sys.stderr)
        else:
            self._path.unlink(missing_ok=True)
