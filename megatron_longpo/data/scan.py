"""The first reading of a range of lines: which are records, and what tells their documents apart."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
from collections.abc import Iterator

import numpy as np

from megatron_longpo.data import jsonl
from megatron_longpo.data.record import RecordError, read_record

DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What a range of lines holds. Blank lines count as lines, and as nothing else.

    Attributes:
        path: the file.
        start: first byte.
        end: one past the last byte.
        num_lines: all lines.
        is_record: bool ``[lines that are not blank]``.
        ids: uint64 ``[records, 2]``: hashes of the document ids.
        contents: uint64 ``[records, 2]``: hashes of the documents, under the key of the seed.
        digest: of the lines.
        packed_problems: the lines that are no records; see `problems`.
    """

    path: str
    start: int
    end: int
    num_lines: int
    is_record: np.ndarray
    ids: np.ndarray
    contents: np.ndarray
    digest: bytes
    packed_problems: bytes

    def problems(self) -> Iterator[tuple[int, str]]:
        """The number of each bad line in this range, from 1, and what is wrong with it."""
        with gzip.open(io.BytesIO(self.packed_problems), "rt", encoding="ascii") as stream:
            for line in stream:
                number, reason = json.loads(line)
                yield number, reason


def scan_range(path: str, start: int, end: int, seed: int, stop_at_bad: bool) -> Scan:
    """Read a range of a file.

    Args:
        path: JSON Lines file.
        start: first byte.
        end: one past the last byte.
        seed: the key of the documents' hashes.
        stop_at_bad: do not read on behind a line that is no record.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    key = str(seed).encode()
    is_record, ids, contents = bytearray(), bytearray(), bytearray()
    number = 0
    packed = io.BytesIO()  # a file of rubbish has millions of problems, all alike
    with gzip.open(packed, "wt", encoding="ascii", compresslevel=1) as problems:
        for number, line in enumerate(jsonl.lines(path, start, end), start=1):
            try:
                if line is None:
                    raise RecordError(f"the line is longer than {jsonl.MAX_LINE_BYTES >> 20} MiB; write one record a line")
                digest.update(line)
                if not line.strip():
                    continue
                record = read_record(line)
            except RecordError as error:
                is_record.append(False)
                problems.write(json.dumps([number, str(error)]) + "\n")
                if stop_at_bad:
                    break
                continue
            is_record.append(True)
            ids += hashlib.blake2b(record.document_id.encode(), digest_size=DIGEST_BYTES).digest()
            contents += hashlib.blake2b(record.long_context.encode(), digest_size=DIGEST_BYTES, key=key).digest()
    return Scan(
        path=path,
        start=start,
        end=end,
        num_lines=number,
        is_record=np.frombuffer(is_record, dtype=bool),
        ids=np.frombuffer(ids, dtype="<u8").reshape(-1, 2),
        contents=np.frombuffer(contents, dtype="<u8").reshape(-1, 2),
        digest=digest.digest(),
        packed_problems=packed.getvalue(),
    )
