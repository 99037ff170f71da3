"""Documents that pairs are made from: JSON Lines, or a folder of text files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        document_id: unique among the documents of a run.
        text: the text, exactly as it was read.
        metadata: whatever its maker wants to keep beside the pairs.
    """

    document_id: str
    text: str
    metadata: dict[str, Any]


def read_documents(path: Path) -> Iterator[Document]:
    """Read documents one at a time, in the order of the file, or of the names in a folder.

    Args:
        path: JSON Lines of ``{"document_id": str, "text": str, "metadata": {...}?}``, or a folder whose ``*.txt`` files are one
            document each, with the file's name (without ``.txt``) as the id.

    Raises:
        UserError: the path holds no documents, a line is not a document, or an id occurs twice.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give documents as JSON Lines or as a folder of .txt files")
    found = False
    seen: dict[str, int] = {}
    for number, document in enumerate(_read_folder(path) if path.is_dir() else _read_lines(path), start=1):
        first = seen.setdefault(document.document_id, number)
        if first != number:
            raise UserError(
                f"{path}: document_id {document.document_id!r} is that of documents {first} and {number}; ids must be unique"
            )
        found = True
        yield document
    if not found:
        raise UserError(f"{path}: no documents in it; expected JSON Lines, or .txt files in a folder")


def _read_folder(folder: Path) -> Iterator[Document]:
    for file in sorted(folder.glob("*.txt")):
        try:
            yield Document(file.stem, _decode(file.read_bytes()), {})
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 (byte {error.start}); convert it, for example with iconv") from None


def _read_lines(file: Path) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(f"{file}:{number}", line)


def _parse_line(where: str, line: bytes) -> Document:
    try:
        record = json.loads(_decode(line))
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; convert the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line is expected") from None
    if not isinstance(record, dict):
        raise UserError(f'{where}: expected an object with "document_id" and "text"')
    for field in ("document_id", "text"):
        if not isinstance(record.get(field), str):
            raise UserError(f'{where}: "{field}" must be a string')
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError(f'{where}: "metadata" must be an object')
    unknown = sorted(record.keys() - {"document_id", "text", "metadata"})
    if unknown:
        raise UserError(f'{where}: unknown field "{unknown[0]}"; put it into "metadata"')
    return Document(record["document_id"], record["text"], metadata)


def _decode(raw: bytes) -> str:
    """Decode UTF-8, without a byte-order mark, line ends as they are."""
    return raw.decode("utf-8-sig")
