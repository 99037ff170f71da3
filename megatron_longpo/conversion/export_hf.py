"""Native checkpoint -> Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_longpo.conversion.fingerprint import TensorDigest, digest_tensor, hash_tensors
from megatron_longpo.conversion.hf_folder import CONFIG, INDEX_FILE, SINGLE_FILE
from megatron_longpo.conversion.layout import Piece, Shape, build_layout, native_shapes
from megatron_longpo.conversion.model_card import model_card
from megatron_longpo.conversion.native_reader import NativeReader
from megatron_longpo.conversion.progress import byte_bar
from megatron_longpo.conversion.record import ASSETS, ModelRecord, find_iteration, sync_folder, write_text
from megatron_longpo.conversion.safetensors_io import write_file
from megatron_longpo.conversion.workers import Workers, say
from megatron_longpo.models.hf_config import architecture_to_hf
from megatron_longpo.utils.errors import UserError

EXPORT_RECORD = "longpo_export.json"
DEFAULT_SHARD_BYTES = 5 * 1000**3


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One tensor to export: the part ``part`` of ``piece``."""

    name: str
    shape: Shape
    dtype: torch.dtype
    piece: Piece
    part: int

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def mcore_to_hf(
    source: Path,
    target: Path,
    *,
    iteration: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    workers: Workers | None = None,
) -> str:
    """Convert a native checkpoint (of any layout, with or without optimizer state) to a Hugging Face folder.

    The folder appears under its name only when it is whole; if it was exported from the same checkpoint before, nothing is done.

    Args:
        source: checkpoint directory, or the folder of one iteration.
        target: folder to make.
        iteration: which checkpoint of the directory; default: the one that the tracker names.
        dtype: torch dtype name of the exported weights; default: the dtypes that the model came with.
        max_shard_bytes: largest size of one safetensors file.
        workers: the processes that share the work, each writing whole files; default: this one alone.

    Returns:
        The fingerprint of the exported weights.

    Raises:
        UserError: if the checkpoint is not understood, or ``target`` holds something else.

    Parallel: digests are gathered over gloo.
    """
    workers = workers or Workers()
    folder = find_iteration(source, iteration)
    record = ModelRecord.read(folder)
    origin = _origin(folder, record, dtype, max_shard_bytes)
    if workers.first(target.exists() and (not target.is_dir() or any(target.iterdir()))):
        return _existing(target, origin, workers)
    reader = NativeReader(folder)
    pieces = build_layout(record.architecture)
    reader.check(native_shapes(pieces))
    shards = _plan_shards(_entries(pieces, record, dtype), max_shard_bytes)
    partial = target.with_name(target.name + ".partial")
    if workers.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    workers.barrier()
    digests = _write_shards(reader, shards, partial, workers)
    fingerprint = hash_tensors(digests)
    if workers.is_first:
        _write_small_files(folder, partial, record, dtype or record.dtype, shards, fingerprint)
        write_text(partial / EXPORT_RECORD, json.dumps({**origin, "weights_sha256": fingerprint}, indent=2))
        sync_folder(partial)
        os.rename(partial, target)
        sync_folder(target.parent)
    workers.barrier()
    return fingerprint


def _origin(folder: Path, record: ModelRecord, dtype: str | None, max_shard_bytes: int) -> dict[str, object]:
    # A checkpoint's index is written last and names every stored byte, so its time and size tell one saved state from another
    index = (folder / ".metadata").stat()
    return {
        "checkpoint": str(folder.resolve()),
        "checkpoint_index": [index.st_size, index.st_mtime_ns],
        "dtype": dtype or record.dtype,
        "max_shard_bytes": max_shard_bytes,
    }


def _existing(target: Path, origin: dict[str, object], workers: Workers) -> str:
    path = target / EXPORT_RECORD
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if {name: found.get(name) for name in origin} != origin:
        raise UserError(f"{target} exists and is not this export of {origin['checkpoint']}; remove it, or give another folder")
    say(f"{target} is up to date: it was exported from the same checkpoint", workers)
    return found["weights_sha256"]


def _entries(pieces: list[Piece], record: ModelRecord, dtype: str | None) -> list[_Entry]:
    entries = []
    for piece in pieces:
        for part, (name, shape) in enumerate(zip(piece.hf_names, piece.hf_shapes, strict=True)):
            stored = dtype or record.other_dtypes.get(name, record.dtype)
            entries.append(_Entry(name, shape, getattr(torch, stored), piece, part))
    return entries


def _plan_shards(entries: list[_Entry], max_shard_bytes: int) -> dict[str, list[_Entry]]:
    """Cut the tensors, in order, into files of at most ``max_shard_bytes`` (a larger tensor has a file of its own)."""
    groups: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.num_bytes
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, start=1)}


def _tensors(reader: NativeReader, entries: list[_Entry]) -> Iterator[tuple[str, Tensor]]:
    piece: Piece | None = None
    parts: list[Tensor] = []
    for entry in entries:
        if piece is not entry.piece:  # query, key and value follow each other: their block is read once
            parts.clear()
            piece = entry.piece
            parts = piece.to_hf(reader.read(piece.key, piece.offset, piece.shape))
        yield entry.name, parts[entry.part].to(entry.dtype).contiguous()


def _write_shards(reader: NativeReader, shards: dict[str, list[_Entry]], partial: Path, workers: Workers) -> list[TensorDigest]:
    sizes = [sum(entry.num_bytes for entry in entries) for entries in shards.values()]
    mine = workers.share(sizes)
    names = list(shards)
    digests = []
    with byte_bar(sum(sizes[index] for index in mine), "exporting", workers) as bar:
        for name in (names[index] for index in mine):
            layout = {entry.name: (entry.dtype, entry.shape) for entry in shards[name]}
            for tensor_name, tensor in write_file(partial / name, layout, _tensors(reader, shards[name])):
                digests.append(digest_tensor(tensor_name, tensor))
                bar.update(tensor.nbytes)
    return [digest for share in workers.gather(digests) for digest in share]


def _write_small_files(
    folder: Path, partial: Path, record: ModelRecord, dtype: str, shards: dict[str, list[_Entry]], fingerprint: str
) -> None:
    assets = folder.parent / ASSETS
    for file in sorted(assets.iterdir()) if assets.is_dir() else ():
        shutil.copyfile(file, partial / file.name)
    config = json.loads((assets / CONFIG).read_text(encoding="utf-8")) if (assets / CONFIG).exists() else None
    write_text(partial / CONFIG, json.dumps(architecture_to_hf(record.architecture, dtype, config), indent=2, sort_keys=True))
    if SINGLE_FILE not in shards:
        weight_map = {entry.name: name for name, entries in shards.items() for entry in entries}
        total = sum(entry.num_bytes for entries in shards.values() for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(partial / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True))
    write_text(partial / "README.md", model_card(record, dtype, fingerprint))
