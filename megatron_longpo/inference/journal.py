"""A work journal: what is done stays done when a run is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from megatron_longpo.utils.errors import UserError


class Journal:
    """An append-only file of JSON lines ``{"entries": [[key, value], ...]}``, each line on disk before its writer goes on.

    The entries of a line stand or fall together. A line that an interruption cut short is removed at the next opening. One
    process at a time may write; its threads may all do. Only the places of the entries are held in memory.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open or create a journal; ``read_only`` opens one that exists, whoever writes to it.

        Raises:
            UserError: another process is writing to it, there is none to read, or a line before the last is damaged.
        """
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}  # offset of the line, place in it
        if read_only:
            try:
                self._file: BinaryIO = path.open("rb")
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; run this shard first") from None
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._file.close()
                raise UserError(f"{path}: another process is writing to it; wait for it, or give another --output") from None
        whole = self._index()
        if not read_only:
            self._file.truncate(whole)

    def _index(self) -> int:
        """Find every entry; returns where the last whole line ends."""
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._place(offset, [key for key, _ in json.loads(line)["entries"]])
            except (ValueError, KeyError, TypeError):
                self.close()
                raise UserError(f"{self.path}:{number}: not a line of a journal; remove the file to start again") from None
            offset += len(line)
        return offset

    def _place(self, offset: int, keys: list[str]) -> None:
        self._places |= {key: (offset, place) for place, key in enumerate(keys)}

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry of this key."""
        return key in self._places

    def read(self, key: str) -> Any:
        """Return the value of a key."""
        offset, place = self._places[key]
        with self._lock:
            self._file.seek(offset)
            line = self._file.readline()
        return json.loads(line)["entries"][place][1]

    def append(self, entries: Mapping[str, Any]) -> None:
        """Add entries, all or none, and wait until they are on disk."""
        line = json.dumps({"entries": list(entries.items())}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._place(offset, list(entries))

    def close(self) -> None:
        """Close the file, which frees it for another process."""
        self._file.close()

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()
