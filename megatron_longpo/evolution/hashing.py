"""Hashes of what stages read and leave; what has been read once is known by its size and time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.evolution.stages import Artifact, all_files
from megatron_longpo.utils.files import read_json, write_json
from megatron_longpo.utils.progress import progress_bar

BAR_FROM = 1 << 30
"""Bytes of a file from which reading it is worth a bar."""
SETTLED = 2.0
"""Seconds since a file's last change before its time can tell the next change from this one."""
BLOCK = 1 << 24


class Hasher:
    """Hashes files, each once until its size or time changes."""

    def __init__(self, known: Mapping[str, list[Any]] | None = None) -> None:
        """Take what is known: absolute path -> size, time in nanoseconds, hash."""
        self._known = dict(known or {})

    @classmethod
    def load(cls, path: Path) -> Hasher:
        """Read what an earlier run knew; nothing, if there is no such file or it is damaged."""
        with contextlib.suppress(ValueError):
            return cls(read_json(path))
        return cls()

    def save(self, path: Path) -> None:
        """Write what is known of files that are still there."""
        write_json(path, {name: entry for name, entry in sorted(self._known.items()) if os.path.exists(name)})

    def digest(self, artifact: Artifact) -> str | None:
        """Hash what counts of an artifact; None where it is not there, or not whole."""
        path, view = artifact.path, artifact.view
        if not path.exists():
            return None
        if view and view.without:
            return _digest_json(path, view.without)
        if path.is_file():
            return self._file(path)
        files = list(view.files(path) if view and view.files else all_files(path))
        if not files:
            return None
        lines = "".join(f"{self._file(file)}  {file.relative_to(path)}\n" for file in files)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def _file(self, path: Path) -> str:
        name, status = os.path.abspath(path), path.stat()
        size, changed, digest = self._known.get(name, (None, None, None))
        if (size, changed) == (status.st_size, status.st_mtime_ns):
            return str(digest)
        settled = time.time() - status.st_mtime > SETTLED
        found = _hash_file(path, status.st_size)
        if settled:
            self._known[name] = [status.st_size, status.st_mtime_ns, found]
        return found


def _hash_file(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        progress_bar(
            total=size, desc=f"hashing {path.name}", unit="B", unit_scale=True, shown=size >= BAR_FROM, leave=False
        ) as bar,
    ):
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _digest_json(path: Path, without: tuple[str, ...]) -> str | None:
    try:
        content = read_json(path)
    except ValueError:
        return None
    kept = {name: value for name, value in content.items() if name not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()
