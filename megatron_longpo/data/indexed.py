"""Reading and writing Megatron's indexed files: the only module of the data package that imports ``megatron.core``."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.manifest import SUFFIXES, FileRecord, manifest_path, record_file
from megatron_longpo.utils.errors import UserError

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, code of the integer type, number of sequences, length of the table of documents."""
INT32_CODE = 4


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

    They are written under temporary names; the manifest of any earlier dataset at the prefix is removed before they take
    their place, so that a dataset is readable only once its own manifest follows.

    Args:
        prefix: path without suffix.
        pairs: the int32 sequences of each pair.

    Returns:
        Size and hash of each file.
    """
    import torch

    temporary = {suffix: Path(f"{prefix}.{suffix}.tmp") for suffix in SUFFIXES}
    builder = _megatron().IndexedDatasetBuilder(str(temporary["bin"]), dtype=np.int32)
    for sequences in pairs:
        for sequence in sequences:
            builder.add_item(torch.from_numpy(sequence))
        builder.end_document()
    builder.finalize(str(temporary["idx"]))
    files = {suffix: record_file(path) for suffix, path in temporary.items()}
    for path in temporary.values():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    manifest_path(prefix).unlink(missing_ok=True)
    for suffix, path in temporary.items():
        os.replace(path, f"{prefix}.{suffix}")
    return files
