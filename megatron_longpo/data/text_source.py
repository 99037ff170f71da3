"""Preference records in JSON Lines files, cut into units of work."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.record import PreferenceRecord, parse_record
from megatron_longpo.data.tokenize_pair import DroppedError, DropReason, LengthLimits, tokenize_record
from megatron_longpo.data.tokenizer import ChatTokenizer
from megatron_longpo.utils.errors import UserError

UNIT_BYTES = 4 << 20
"""A unit ends with the line that passes this size: seconds of work, whatever the number of workers."""


@dataclasses.dataclass(frozen=True)
class TextUnit:
    """Some lines of a file.

    Attributes:
        path: the file.
        start: first byte.
        end: one past the last byte.
    """

    path: str
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Size, for the progress bar."""
        return self.end - self.start

    def pairs(self, tokenizer: ChatTokenizer | None, limits: LengthLimits) -> Iterator[PreferencePair | DropReason]:
        """The pair of each record, or why there is none, in the file's order."""
        assert tokenizer is not None
        for record in self._records():
            try:
                yield tokenize_record(record, tokenizer, limits)
            except DroppedError as dropped:
                yield dropped.reason

    def _records(self) -> Iterator[PreferenceRecord]:
        with Path(self.path).open("rb") as stream:
            stream.seek(self.start)
            while (position := stream.tell()) < self.end:
                line = stream.readline()
                if line.strip():  # the scan has checked every line: it fails here only if the file has changed since
                    yield parse_record(line, f"{self.path}: changed while it was read, at byte {position}")


def scan_text(paths: Sequence[str], progress: Callable[[int], object]) -> tuple[list[TextUnit], list[dict[str, str]]]:
    """Validate every record before any work is done, and cut the files into units.

    Args:
        paths: JSON Lines files.
        progress: is told the bytes as they are read.

    Returns:
        The units in order, and name and SHA-256 of each file.

    Raises:
        UserError: a file cannot be read, a line is no record, or a document id occurs twice.
    """
    units: list[TextUnit] = []
    inputs = []
    seen: dict[str, str] = {}
    for path in paths:
        digest = hashlib.sha256()
        position = start = 0
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                if line.strip():
                    _check_unique(parse_record(line, f"{path}:{number}"), f"{path}:{number}", seen)
                position += len(line)
                progress(len(line))
                if position - start >= UNIT_BYTES:
                    units.append(TextUnit(path, start, position))
                    start = position
        if position > start:
            units.append(TextUnit(path, start, position))
        inputs.append({"name": Path(path).name, "sha256": digest.hexdigest()})
    return units, inputs


def _open(path: str):  # type: ignore[no-untyped-def]
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}; give JSON Lines files") from None


def _check_unique(record: PreferenceRecord, where: str, seen: dict[str, str]) -> None:
    earlier = seen.setdefault(record.document_id, where)
    if earlier is not where:
        raise UserError(f"{where}: document_id: {record.document_id!r} is taken by {earlier}; give each document a unique id")
