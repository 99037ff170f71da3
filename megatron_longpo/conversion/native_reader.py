"""Read blocks of the tensors in a distributed checkpoint, whatever layout wrote it, without building a model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_longpo.conversion.layout import EMBEDDING, OUTPUT, Shape
from megatron_longpo.conversion.safe_metadata import check_files, read_metadata, read_segment
from megatron_longpo.utils.errors import UserError

_MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")
_VOCABULARY = (EMBEDDING, OUTPUT)  # may have padding rows at the end


class NativeReader:
    """The model tensors of one iteration's folder; optimizer and random states in it are not touched."""

    def __init__(self, folder: Path) -> None:
        """Read the index.

        Raises:
            UserError: if the checkpoint is not whole or its index is more than an index.
        """
        self.folder = folder
        metadata = read_metadata(folder)
        check_files(folder, metadata)
        stored = {(index.fqn, index.offset): info for index, info in metadata.storage_data.items()}
        self._shapes: dict[str, Shape] = {}
        self._chunks: dict[str, list[tuple[Shape, Shape, Any]]] = {}  # offset, shape, place in the files
        for key, entry in metadata.state_dict_metadata.items():
            if key.startswith(_MODEL_PREFIXES) and isinstance(entry, TensorStorageMetadata):
                self._shapes[key] = tuple(entry.size)
                self._chunks[key] = [(tuple(c.offsets), tuple(c.sizes), stored[key, c.offsets]) for c in entry.chunks]

    def check(self, expected: dict[str, Shape]) -> None:
        """Compare the tensors with those of an architecture.

        Raises:
            UserError: naming the tensors that are missing, unexpected or of another shape.
        """
        for what, names in (("lacks", expected.keys() - self._shapes), ("holds unexpected", self._shapes.keys() - expected)):
            if names:
                raise UserError(f"{self.folder} {what} tensors: {', '.join(sorted(names))}")
        for key, shape in expected.items():
            found = self._shapes[key]
            padded = key in _VOCABULARY and found[0] >= shape[0] and found[1:] == shape[1:]
            if found != shape and not padded:
                raise UserError(f"{self.folder}: {key} has shape {list(found)}; the model record asks for {list(shape)}")

    def read(self, key: str, offset: Shape, shape: Shape) -> Tensor:
        """Read the block ``[offset, offset + shape)`` of a tensor, in its stored dtype; memory holds it and one stored chunk."""
        block: Tensor | None = None
        covered = 0
        for start, sizes, info in self._chunks[key]:
            bounds = [(max(a, c), min(a + b, c + d)) for a, b, c, d in zip(offset, shape, start, sizes, strict=True)]
            if any(low >= high for low, high in bounds):
                continue
            data = read_segment(self.folder, info)
            chunk = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            del data
            if (start, sizes) == (offset, shape):
                return chunk.reshape(shape)
            if block is None:
                block = torch.empty(shape, dtype=chunk.dtype)
            part = chunk[tuple(slice(low - c, high - c) for (low, high), c in zip(bounds, start, strict=True))]
            block[tuple(slice(low - a, high - a) for (low, high), a in zip(bounds, offset, strict=True))] = part
            covered += part.numel()
        if block is None or covered != block.numel():
            raise UserError(f"{self.folder}: {key} is not stored whole")
        return block
