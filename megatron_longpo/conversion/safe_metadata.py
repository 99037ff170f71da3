"""Read the pickles of a distributed checkpoint without letting them run code.

PyTorch keeps a checkpoint's index in ``.metadata``, a pickle, and Megatron-Core keeps small objects (``_extra_state``, random
states) as pickles inside the shards; both libraries unpickle them freely. `check_metadata`, called before any load, lets only
the named classes of the index through and, for the small objects, only what ``torch.load(weights_only=True)`` accepts.
"""

from __future__ import annotations

import enum
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_longpo.utils.errors import UserError

METADATA_FILE = ".metadata"
COMMON_FILE = "common.pt"
_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
# Plain records, enumerations and sizes: building any of them runs no code of the file's choosing
_ALLOWED = {
    *((_METADATA, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    *((_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in _DTYPES),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}  # fmt: skip


def _member(kind: Any, name: str) -> enum.Enum:
    """Stand for `getattr`, by which some Pythons (3.11.2 of Debian 12) write an enumeration's member; give nothing else."""
    if not (isinstance(kind, enum.EnumType) and name in kind.__members__):
        raise pickle.UnpicklingError(f"it asks for {name!r} of something that is no enumeration with such a member")
    return kind.__members__[name]


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """Read the index of a distributed checkpoint.

    Raises:
        UserError: if the file is absent or damaged, or asks for anything but the index's own classes.
    """
    path = folder / METADATA_FILE
    try:
        with path.open("rb") as stream:
            metadata = _IndexUnpickler(stream).load()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: this is not a whole distributed checkpoint") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is refused: {error}; load only checkpoints that you trust") from None
    if not isinstance(metadata, Metadata):
        raise UserError(f"{path} is refused: it holds a {type(metadata).__name__}, not a checkpoint's index")
    return metadata


def check_metadata(folder: Path) -> None:
    """Refuse a checkpoint whose pickles would run code. Call before Megatron-Core's own load.

    Raises:
        UserError: if ``.metadata``, ``common.pt`` or a small object in a shard is more than plain data, or a shard is cut off.
    """
    metadata = read_metadata(folder)
    check_files(folder, metadata)
    for index, info in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            _load_plain(read_segment(folder, info), f"object {index.fqn} in {folder / info.relative_path}")
    if (folder / COMMON_FILE).exists():
        _load_plain((folder / COMMON_FILE).read_bytes(), str(folder / COMMON_FILE))


def check_files(folder: Path, metadata: Metadata) -> None:
    """Refuse a checkpoint whose index names files outside its folder, or files that are absent or too short."""
    needed: dict[str, int] = {}
    for info in metadata.storage_data.values():
        needed[info.relative_path] = max(needed.get(info.relative_path, 0), info.offset + info.length)
    for name, size in needed.items():
        if Path(name).name != name:
            raise UserError(f"{folder / METADATA_FILE} is refused: it names the file {name!r} outside the checkpoint")
        path = folder / name
        if not path.exists() or path.stat().st_size < size:
            raise UserError(f"{path} is missing or cut off; the checkpoint is not whole")


def read_segment(folder: Path, info: Any) -> bytes:
    """The bytes of one stored object or tensor."""
    if getattr(info, "transform_descriptors", None):
        raise UserError(f"{folder / info.relative_path} is compressed ({info.transform_descriptors}), which is not supported")
    with (folder / info.relative_path).open("rb") as stream:
        stream.seek(info.offset)
        return stream.read(info.length)


def _load_plain(data: bytes, what: str) -> None:
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{what} is refused: it is more than plain data ({reason}); load only checkpoints that you trust"
        ) from None
