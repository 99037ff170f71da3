"""Safetensors files, one tensor at a time.

The safetensors library maps whole files into memory on reading and wants a whole file's tensors at once on writing. Conversion
must stay within a few tensors of memory, so both sides are done here by plain reads and writes. The format is an 8-byte
little-endian length, a JSON header (name -> dtype, shape, byte range) and the bytes (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from megatron_longpo.conversion.fingerprint import tensor_bytes
from megatron_longpo.utils.errors import UserError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_ALIGNMENT = 8


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        path: the file.
        dtype: torch dtype.
        shape: shape.
        start: first byte, counted from the beginning of the file.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read the tensor into fresh memory.

        Raises:
            UserError: if the file has become shorter.
        """
        data = torch.empty(self.num_bytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            read_fully(stream, data.numpy().data, self.path)
        return data.view(self.dtype).reshape(self.shape)


def read_fully(stream: BinaryIO, target: memoryview, path: Path) -> None:
    """Fill ``target`` from an unbuffered stream (which may return less than asked: Linux stops at 2 GiB)."""
    filled = 0
    while filled < len(target):
        count = stream.readinto(target[filled:])  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{path}: the file ends too early; it is damaged or still being written")
        filled += count


def read_index(path: Path) -> dict[str, StoredTensor]:
    """Read a file's header.

    Raises:
        UserError: if the file is not safetensors, is cut off, or holds a dtype that is not a plain float.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise UserError(f"{path}: not a safetensors file{_pickle_hint(prefix)}")
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            raise UserError(f"{path}: not a safetensors file: its header is not JSON") from None
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _pickle_hint(prefix: bytes) -> str:
    return " but a pickle; save the model again as safetensors" if prefix[:2] in (b"PK", b"\x80\x02", b"\x80\x04") else ""


def _stored(path: Path, name: str, entry: dict, base: int, size: int) -> StoredTensor:
    code = entry.get("dtype")
    if code not in DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {code}; supported are {', '.join(DTYPES)} (quantised weights are not)")
    start, end = entry["data_offsets"]
    stored = StoredTensor(path, DTYPES[code], tuple(entry["shape"]), base + start)
    if end - start != stored.num_bytes:
        raise UserError(
            f"{path}: tensor {name} of shape {list(stored.shape)} and dtype {code} does not fill its {end - start} bytes"
        )
    if base + end > size:
        raise UserError(f"{path}: the file ends before tensor {name}; it is damaged or still being written")
    return stored


def build_header(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds ``tensors`` in the order of the dictionary."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write_file(
    path: Path, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Write a file tensor by tensor, yielding each one after it is written (to be hashed, counted, shown).

    Args:
        path: the file; it must not be read before the iteration has ended.
        layout: dtype and shape of every tensor, in file order.
        tensors: the tensors, in the same order; pulled one at a time.
    """
    with path.open("wb") as stream:
        stream.write(build_header(layout))
        for (name, tensor), expected in zip(tensors, layout, strict=True):
            if name != expected or (tensor.dtype, tuple(tensor.shape)) != layout[expected]:
                raise AssertionError(f"tensor {name} comes where {expected} was announced")
            stream.write(tensor_bytes(tensor))
            yield name, tensor
        sync(stream)


def sync(stream: BinaryIO) -> None:
    """Flush a file to the disk."""
    stream.flush()
    os.fsync(stream.fileno())
