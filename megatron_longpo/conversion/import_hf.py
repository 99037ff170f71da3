"""Hugging Face folder -> native checkpoint."""

from __future__ import annotations

import collections
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from megatron_longpo.conversion.fingerprint import TensorDigest, digest_tensor, dtype_name, hash_files, hash_tensors
from megatron_longpo.conversion.hf_folder import HfFolder, open_hf_folder
from megatron_longpo.conversion.layout import Piece, build_layout
from megatron_longpo.conversion.native_writer import write_native
from megatron_longpo.conversion.progress import byte_bar
from megatron_longpo.conversion.record import ASSETS, RELEASE, TRACKER_FILE, ModelRecord, find_iteration, sync_folder
from megatron_longpo.conversion.safe_metadata import check_metadata
from megatron_longpo.conversion.workers import Workers, say
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import write_text


def hf_to_mcore(source: Path, target: Path, workers: Workers | None = None) -> ModelRecord:
    """Convert a Hugging Face folder to a native checkpoint directory.

    The directory appears under its name only when it is whole. If it is there already, made from the same weights and files,
    nothing is done.

    Args:
        source: folder with config.json and safetensors.
        target: directory to make.
        workers: the processes that share the work; default: this one alone.

    Returns:
        The checkpoint's record.

    Raises:
        UserError: if the folder is not understood, or ``target`` holds something else.

    Parallel: each process writes a share of the pieces; digests are gathered over gloo.
    """
    workers = workers or Workers()
    folder = open_hf_folder(source)
    if workers.first(target.exists() and (not target.is_dir() or any(target.iterdir()))):
        return workers.first(_existing(folder, target, workers) if workers.is_first else None)  # type: ignore[return-value]
    partial = target.with_name(target.name + ".partial")
    if workers.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / RELEASE).mkdir(parents=True)
    workers.barrier()
    record = _convert(folder, partial, workers)
    if workers.is_first:
        write_text(partial / TRACKER_FILE, RELEASE + "\n")
        sync_folder(partial)
        os.rename(partial, target)
        sync_folder(target.parent)
    workers.barrier()
    return record


def hash_hf_weights(folder: HfFolder) -> str:
    """Fingerprint of a folder's weights, read one tensor at a time."""
    workers = Workers()
    digests = []
    with byte_bar(sum(tensor.num_bytes for tensor in folder.tensors.values()), "hashing", workers) as bar:
        for name, tensor in folder.tensors.items():
            digests.append(digest_tensor(name, tensor.read()))
            bar.update(tensor.num_bytes)
    return hash_tensors(digests)


def _existing(folder: HfFolder, target: Path, workers: Workers) -> ModelRecord:
    cure = "remove it, or give another directory"
    try:
        iteration = find_iteration(target)
        record = ModelRecord.read(iteration)
        check_metadata(iteration)
    except UserError as error:
        raise UserError(f"{target} exists and is not a whole converted checkpoint ({error}); {cure}") from None
    if (record.architecture, record.assets_sha256) != (folder.architecture, hash_files(folder.assets)):
        raise UserError(f"{target} was made from another configuration or tokenizer than {folder.path}; {cure}")
    if record.weights_sha256 != hash_hf_weights(folder):
        raise UserError(f"{target} was made from other weights than {folder.path}; {cure}")
    say(f"{target} is up to date: it was made from the same weights", workers)
    return record


def _convert(folder: HfFolder, partial: Path, workers: Workers) -> ModelRecord:
    pieces = build_layout(folder.architecture)
    digests: list[TensorDigest] = []
    total = sum(tensor.num_bytes for tensor in folder.tensors.values())
    with byte_bar(total // workers.size, "converting", workers) as bar:

        def make(piece: Piece) -> Tensor:
            tensors = [folder.tensors[name].read() for name in piece.hf_names]
            digests.extend(map(digest_tensor, piece.hf_names, tensors))
            bar.update(sum(tensor.nbytes for tensor in tensors))
            return piece.to_native(tensors)

        dtypes = [_piece_dtype(folder, piece) for piece in pieces]
        write_native(partial / RELEASE, pieces, dtypes, folder.architecture.num_layers, make, workers)
    digests = [digest for share in workers.gather(digests) for digest in share]
    record = _record(folder, digests)
    if workers.is_first:
        (partial / ASSETS).mkdir()
        for file in folder.assets:
            shutil.copyfile(file, partial / ASSETS / file.name)
        record.write(partial / RELEASE)
    return record


def _piece_dtype(folder: HfFolder, piece: Piece) -> torch.dtype:
    dtypes = {folder.tensors[name].dtype for name in piece.hf_names}
    if len(dtypes) > 1:
        names = ", ".join(piece.hf_names)
        raise UserError(f"{folder.path}: {names} must have one dtype; they have {sorted(map(dtype_name, dtypes))}")
    return dtypes.pop()


def _record(folder: HfFolder, digests: list[TensorDigest]) -> ModelRecord:
    (common, _), *_ = collections.Counter(digest.dtype for digest in digests).most_common(1)
    return ModelRecord(
        architecture=folder.architecture,
        dtype=common,
        other_dtypes={digest.name: digest.dtype for digest in sorted(digests) if digest.dtype != common},
        weights_sha256=hash_tensors(digests),
        source=str(folder.path.resolve()),
        assets_sha256=hash_files(folder.assets),
    )
