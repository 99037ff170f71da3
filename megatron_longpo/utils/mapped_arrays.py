"""Arrays of an uncompressed ``.npz`` file without reading it whole. NumPy maps ``.npy`` files only."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_LENGTHS_IN_HEADER = 26
"""Where a zip entry's own header has the lengths of its name and of its extra field, two bytes each, before those."""


def map_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Map arrays of a file that ``numpy.savez`` wrote.

    Raises:
        ValueError: an entry is compressed or is no array.
        KeyError: there is no such array.
        OSError, zipfile.BadZipFile: the file cannot be read.
    """
    import numpy as np

    arrays: list[np.ndarray] = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for name in names:
            entry = archive.getinfo(f"{name}.npy")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed")
            file.seek(entry.header_offset + _LENGTHS_IN_HEADER)
            file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
            shape, dtype = _read_header(file)
            arrays.append(np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape))
    return arrays


def read_blocks(path: Path, name: str, elements: int = 1 << 12) -> Iterator[np.ndarray]:
    """An array's elements in order, some at a time; the entry's checksum is verified at the end.

    Raises:
        KeyError: there is no such array.
        OSError, ValueError, zipfile.BadZipFile: the file cannot be read, or its content is not what was written.
    """
    import numpy as np

    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        _, dtype = _read_header(file)
        while block := file.read(elements * dtype.itemsize):
            yield np.frombuffer(block, dtype=dtype)


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    import numpy as np

    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read[np.lib.format.read_magic(file)](file)
    return shape, dtype
