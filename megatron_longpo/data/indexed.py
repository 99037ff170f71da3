"""Reading and writing Megatron's indexed files: the only module of the data package that imports ``megatron.core``, to read."""

from __future__ import annotations

import array
import hashlib
import os
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.manifest import SUFFIXES, FileRecord, manifest_path
from megatron_longpo.utils.errors import UserError

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, code of the integer type, number of sequences, length of the table of documents."""
INT32_CODE = 4
INDEX_BLOCK = 1 << 20
"""Sequences whose places are computed together."""


class IndexedPairs:
    """The sequences of each pair in ``PREFIX.bin`` and ``PREFIX.idx``, through the stock ``IndexedDataset``.

    The files are memory-mapped, so copies in forked processes share their pages; pickling carries the prefix alone. What is
    handed out is a copy: Megatron closes the map when its dataset goes, and a view that is read later would crash the process.
    """

    def __init__(self, prefix: str) -> None:
        """Open the files.

        Raises:
            UserError: they are no index, or not of int32.
        """
        _check_index(Path(f"{prefix}.idx"))
        self._dataset = _megatron().IndexedDataset(prefix)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._dataset.document_indices) - 1

    def sequences(self, index: int) -> list[np.ndarray]:
        """The int32 sequences of pair ``index``."""
        first, last = self._bounds(index)
        return [np.array(self._dataset[i]) for i in range(first, last)]

    def sequence(self, index: int, which: int) -> np.ndarray:
        """Sequence ``which`` of pair ``index``."""
        return np.array(self._dataset[self._bounds(index)[0] + which])

    def sequence_length(self, index: int, which: int) -> int:
        """Its length, from the index alone."""
        return int(self._dataset.sequence_lengths[self._bounds(index)[0] + which])

    def num_sequences(self, index: int) -> int:
        """Number of sequences of pair ``index``, from the index alone."""
        first, last = self._bounds(index)
        return last - first

    def _bounds(self, index: int) -> tuple[int, int]:
        bounds = self._dataset.document_indices
        return int(bounds[index]), int(bounds[index + 1])


def _check_index(path: Path) -> None:
    """Refuse an index that Megatron's reader would fail on, or would read beyond its end."""
    with path.open("rb") as stream:
        content = stream.read(INDEX_HEADER.size)
        if len(content) == INDEX_HEADER.size:
            magic, version, dtype, num_sequences, num_documents = INDEX_HEADER.unpack(content)
            size = INDEX_HEADER.size + num_sequences * (4 + 8) + num_documents * 8
            if (magic, version, dtype, size) == (INDEX_MAGIC, 1, INT32_CODE, path.stat().st_size) and num_documents > 0:
                stream.seek(-8, os.SEEK_END)
                if int.from_bytes(stream.read(8), "little") == num_sequences:
                    return
                raise UserError(f"{path}: its documents do not end with its sequences; make the dataset anew")
    raise UserError(f"{path}: not a Megatron index of int32 sequences; make the dataset anew")


def _megatron() -> Any:
    """Megatron's module. Its packages warn of what is missing (Transformer Engine, a rank), which reading files does not need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


def write_indexed(prefix: str, pairs: Iterable[Sequence[np.ndarray]]) -> dict[str, FileRecord]:
    """Write ``PREFIX.bin`` and ``PREFIX.idx``.

    A pair costs twelve bytes of memory and four for each sequence; Megatron's own builder holds Python lists of them. The files
    are written under temporary names; the manifest of any earlier dataset at the prefix is removed before they take
    their place, so that a dataset is readable only once its own manifest follows.

    Args:
        prefix: path without suffix.
        pairs: the int32 sequences of each pair.

    Returns:
        Size and hash of each file.
    """
    temporary = {suffix: Path(f"{prefix}.{suffix}.tmp") for suffix in SUFFIXES}
    lengths, ends = array.array("i"), array.array("q", [0])
    with _HashedFile(temporary["bin"]) as tokens:
        for sequences in pairs:
            for sequence in sequences:
                tokens.write(np.ascontiguousarray(sequence, dtype="<i4").data)
                lengths.append(len(sequence))
            ends.append(len(lengths))
    with _HashedFile(temporary["idx"]) as index:
        _write_index(index, np.frombuffer(lengths, np.int32), np.frombuffer(ends, np.int64))
    manifest_path(prefix).unlink(missing_ok=True)
    for suffix, path in temporary.items():
        os.replace(path, f"{prefix}.{suffix}")
    return {"bin": tokens.record(), "idx": index.record()}


def _write_index(index: _HashedFile, lengths: np.ndarray, ends: np.ndarray) -> None:
    """Write an index of int32 ``lengths`` of sequences, and int64 ``ends``: each pair's first sequence, and their number."""
    index.write(INDEX_HEADER.pack(INDEX_MAGIC, 1, INT32_CODE, len(lengths), len(ends)))
    index.write(lengths.astype("<i4", copy=False).data)
    position = 0
    for start in range(0, len(lengths), INDEX_BLOCK):
        places = position + np.concatenate([[0], np.cumsum(lengths[start : start + INDEX_BLOCK], dtype=np.int64) * 4])
        index.write(places[:-1].astype("<i8", copy=False).data)
        position = int(places[-1])
    index.write(ends.astype("<i8", copy=False).data)


class _HashedFile:
    """A file that is hashed while it is written, and is on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self._num_bytes += memoryview(data).nbytes

    def record(self) -> FileRecord:
        return FileRecord(self._num_bytes, self._digest.hexdigest())

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
