"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Write a text under a temporary name; the file gets its own when the block ends well."""
    with _partial(path) as binary, os.fdopen(os.dup(binary.fileno()), "w", encoding="utf-8", errors="backslashreplace") as text:
        yield text


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes."""
    with _partial(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text; a lone surrogate, which has no UTF-8, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file.

    Raises:
        ValueError: it is no JSON object.
    """
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
