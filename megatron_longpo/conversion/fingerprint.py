"""Fingerprints by content: of a model's weights and of its tokenizer's files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, order=True)
class TensorDigest:
    """What the fingerprint takes of one Hugging Face tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order, without a copy where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def digest_tensor(name: str, tensor: Tensor) -> TensorDigest:
    """Digest one tensor."""
    return TensorDigest(name, dtype_name(tensor.dtype), tuple(tensor.shape), hashlib.sha256(tensor_bytes(tensor)).hexdigest())


def hash_tensors(digests: Iterable[TensorDigest]) -> str:
    """The weights' fingerprint: SHA-256 over name, dtype, shape and content of every tensor, in name order.

    It depends on neither shards nor the order or the number of processes in which tensors were read.
    """
    total = hashlib.sha256()
    for digest in sorted(digests):
        total.update(json.dumps([digest.name, digest.dtype, list(digest.shape), digest.sha256]).encode() + b"\n")
    return total.hexdigest()


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents of small files, in name order."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        total.update(json.dumps([path.name, hashlib.sha256(path.read_bytes()).hexdigest()]).encode() + b"\n")
    return total.hexdigest()
