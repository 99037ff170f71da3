"""Lines of a file, in ranges that can be read one by one, with no more memory than the longest line allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_longpo.utils.errors import UserError

MAX_LINE_BYTES = 256 << 20
"""Of a line: fifty times a record of a million tokens. A longer one is no record, and is not held in memory."""
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
"""How gzip's and Zstandard's files begin."""
BLOCK = 1 << 18
"""Read at a time."""


def cut(path: str, num_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a file into ranges of whole lines: each ends with the line that passes ``num_bytes``, the last with the file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with Path(path).open("rb", buffering=0) as stream:
            if stream.read(4).startswith(COMPRESSED):
                raise UserError(f"--input {path}: is compressed; unpack it, with gunzip or unzstd")
            size = stream.seek(0, 2)
            start = 0
            while start < size:
                end = stream.seek(start + num_bytes - 1)
                while (block := stream.read(BLOCK)) and (found := block.find(b"\n")) < 0:
                    end += len(block)
                end = end + found + 1 if block else size
                yield start, end
                start = end
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}; give JSON Lines files") from None


def lines(path: str, start: int, end: int) -> Iterator[bytes | None]:
    """The lines of a range, blank ones too; None for one of more than `MAX_LINE_BYTES`."""
    with Path(path).open("rb", buffering=BLOCK) as stream:
        stream.seek(start)
        while stream.tell() < end:
            line = stream.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) <= MAX_LINE_BYTES:
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(BLOCK)
            yield None
