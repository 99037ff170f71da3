"""A work journal: what is done stays done when a run is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_longpo.utils.errors import UserError


class Journal:
    """An append-only file of JSON lines ``{"key": str, "value": ...}``, each on disk before the next piece of work starts.

    A key is written once. A line that an interruption cut short is removed at the next opening. One process at a time may
    have it open.
    """

    def __init__(self, path: Path) -> None:
        """Open or create a journal.

        Raises:
            UserError: another process has it open, or a line before the last is damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{path}: another process is writing to it; wait for it, or give another --output") from None
        self._offsets: dict[str, int] = {}
        self._index()

    def _index(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._offsets[json.loads(line)["key"]] = offset
            except (ValueError, KeyError, TypeError):
                self.close()
                raise UserError(f"{self.path}:{number}: not a line of a journal; remove the file to start again") from None
            offset += len(line)
        self._file.truncate(offset)

    def __contains__(self, key: str) -> bool:
        """Whether the work of this key is done."""
        return key in self._offsets

    def read(self, key: str) -> Any:
        """Return the value of a key."""
        self._file.seek(self._offsets[key])
        return json.loads(self._file.readline())["value"]

    def append(self, key: str, value: Any) -> None:
        """Add a value and wait until it is on disk."""
        offset = self._file.seek(0, os.SEEK_END)
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._offsets[key] = offset

    def close(self) -> None:
        """Close the file, which frees it for another process."""
        self._file.close()

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()
