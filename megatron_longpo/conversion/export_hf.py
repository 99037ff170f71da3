"""Native checkpoint -> Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_longpo.conversion.adapters import AdapterReader, find_base
from megatron_longpo.conversion.export_folder import existing_export, finish_export, origin_of, start_export, write_assets
from megatron_longpo.conversion.export_peft import export_adapters
from megatron_longpo.conversion.fingerprint import TensorDigest, digest_tensor, hash_tensors
from megatron_longpo.conversion.hf_folder import INDEX_FILE, SINGLE_FILE
from megatron_longpo.conversion.layout import Piece, Shape, build_layout, native_shapes
from megatron_longpo.conversion.model_card import model_card
from megatron_longpo.conversion.native_reader import NativeReader
from megatron_longpo.conversion.progress import byte_bar
from megatron_longpo.conversion.record import ModelRecord, find_iteration
from megatron_longpo.conversion.safetensors_io import write_file
from megatron_longpo.conversion.workers import Workers
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import write_text

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
    merge: bool = False,
    base: Path | None = None,
) -> str:
    """Convert a native checkpoint (of any layout, with or without optimizer state) to a Hugging Face folder.

    The checkpoint of a run with LoRA becomes a folder of adapters in PEFT's format, or, merged, a whole model. The folder appears
    under its name only when it is whole; if it was exported from the same checkpoint before, nothing is done.

    Args:
        source: checkpoint directory, or the folder of one iteration.
        target: folder to make.
        iteration: which checkpoint of the directory; default: the one that the tracker names.
        dtype: torch dtype name of the exported weights; default: the dtypes that the model came with (of adapters: that they
            were trained in).
        max_shard_bytes: largest size of one safetensors file.
        workers: the processes that share the work, each writing whole files; default: this one alone.
        merge: add the adapters of a run with LoRA to their base.
        base: where that base lies now; default: where it lay in training.

    Returns:
        The fingerprint of the exported weights.

    Raises:
        UserError: if the checkpoint is not understood, ``target`` holds something else, or there is nothing to merge.

    Parallel: digests are gathered over gloo.
    """
    workers = workers or Workers()
    folder = find_iteration(source, iteration)
    record = ModelRecord.read(folder)
    if merge and record.adapters is None:
        raise UserError(f"{folder}: holds a whole model, there is nothing to --merge")
    if record.adapters is not None and not merge:
        return export_adapters(folder, record, target, dtype, workers)
    form = {"form": "merged"} if merge else {}
    origin = origin_of(folder, dtype=dtype or record.dtype, max_shard_bytes=max_shard_bytes, **form)
    found = existing_export(target, origin, workers)
    if found is not None:
        return found
    adapters = AdapterReader(folder, record) if merge else None
    reader = NativeReader(find_base(record, base) if merge else folder)
    pieces = build_layout(record.architecture)
    reader.check(native_shapes(pieces))
    shards = _plan_shards(_entries(pieces, record, dtype), max_shard_bytes)
    partial = start_export(target, workers)
    digests = _write_shards(reader, adapters, shards, partial, workers)
    fingerprint = hash_tensors(digests)
    if workers.is_first:
        write_assets(folder, partial, record, dtype or record.dtype)
        _write_index(partial, shards)
        write_text(partial / "README.md", model_card(record, dtype or record.dtype, fingerprint))
        finish_export(partial, target, origin, fingerprint)
    workers.barrier()
    return fingerprint


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


def _tensors(reader: NativeReader, adapters: AdapterReader | None, entries: list[_Entry]) -> Iterator[tuple[str, Tensor]]:
    piece: Piece | None = None
    parts: list[Tensor] = []
    for entry in entries:
        if piece is not entry.piece:  # query, key and value follow each other: their block is read once
            parts.clear()
            piece = entry.piece
            parts = piece.to_hf(reader.read(piece.key, piece.offset, piece.shape))
        tensor = parts[entry.part] if adapters is None else adapters.merge(entry.name, parts[entry.part])
        yield entry.name, tensor.to(entry.dtype).contiguous()


def _write_shards(
    reader: NativeReader, adapters: AdapterReader | None, shards: dict[str, list[_Entry]], partial: Path, workers: Workers
) -> list[TensorDigest]:
    sizes = [sum(entry.num_bytes for entry in entries) for entries in shards.values()]
    mine = workers.share(sizes)
    names = list(shards)
    digests = []
    with byte_bar(sum(sizes[index] for index in mine), "exporting", workers) as bar:
        for name in (names[index] for index in mine):
            layout = {entry.name: (entry.dtype, entry.shape) for entry in shards[name]}
            for tensor_name, tensor in write_file(partial / name, layout, _tensors(reader, adapters, shards[name])):
                digests.append(digest_tensor(tensor_name, tensor))
                bar.update(tensor.nbytes)
    return [digest for share in workers.gather(digests) for digest in share]


def _write_index(partial: Path, shards: dict[str, list[_Entry]]) -> None:
    if SINGLE_FILE in shards:
        return
    weight_map = {entry.name: name for name, entries in shards.items() for entry in entries}
    total = sum(entry.num_bytes for entries in shards.values() for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_text(partial / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True) + "\n")
