"""``PREFIX.json``: what a tokenised dataset is, and the proof that its files are whole. Its size does not grow with the pairs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_longpo.utils.errors import UserError

SCHEMA_VERSION = 2
SUFFIXES = ("bin", "idx")


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file as it was written."""

    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the dataset; all None but ``source`` where imported data came without one.

    Attributes:
        source: the path that was given.
        fingerprint: SHA-256 of what decides how text becomes ids.
        template_fingerprint: SHA-256 of what decides how a chat becomes text.
        vocab_size: one more than its largest id.
        eos_token_id: end of sequence.
        pad_token_id: padding.
    """

    source: str | None = None
    fingerprint: str | None = None
    template_fingerprint: str | None = None
    vocab_size: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole manifest; field names are its JSON keys.

    Attributes:
        num_records: records read; ``num_pairs`` plus all drops.
        num_pairs: pairs in the dataset.
        num_turns: turns of all pairs together.
        max_turns: turns of the longest pair.
        max_token_id: the largest id anywhere in it.
        seq_length: the limit on long sides that was applied.
        short_seq_length: the limit on short sides that was applied, or None.
        drops: number of records dropped, by reason.
        lengths: for chosen, rejected, shared_prefix, short_chosen, short_rejected and answer: count, minimum, mean and
            maximum, in tokens.
        tokenizer: what made the ids.
        job: inputs by name and SHA-256, and options: equal jobs give equal datasets.
        files: ``bin`` and ``idx``.
        data_hash: SHA-256 of the two files' hashes: the identity of the data.
    """

    num_records: int
    num_pairs: int
    num_turns: int
    max_turns: int
    max_token_id: int
    seq_length: int
    short_seq_length: int | None
    drops: dict[str, int]
    lengths: dict[str, dict[str, float]]
    tokenizer: TokenizerRecord
    job: dict[str, Any]
    files: dict[str, FileRecord]
    data_hash: str
    schema_version: int = SCHEMA_VERSION


def manifest_path(prefix: str) -> Path:
    """Where a dataset's manifest lies."""
    return Path(f"{prefix}.json")


def data_hash(files: dict[str, FileRecord]) -> str:
    """Combine the hashes of the files."""
    return hashlib.sha256("".join(files[suffix].sha256 for suffix in SUFFIXES).encode()).hexdigest()


def record_file(path: Path, progress: Callable[[int], object] = lambda _: None) -> FileRecord:
    """Size and SHA-256 of a file; ``progress`` is told the bytes as they are read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            progress(len(block))
    return FileRecord(path.stat().st_size, digest.hexdigest())


def read_manifest(prefix: str) -> Manifest:
    """Read and check a manifest against the sizes of its files.

    Raises:
        UserError: there is none, it is not one, it is of another version, or a file is missing or of another size.
    """
    path = manifest_path(prefix)
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest; make the dataset with tools/preprocess_preference_data.py") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable manifest ({error}); make the dataset anew") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version is {version!r}, this program reads {SCHEMA_VERSION}; make the dataset anew, "
            "with --overwrite at the same place"
        )
    try:
        fields["tokenizer"] = TokenizerRecord(**fields["tokenizer"])
        fields["files"] = {suffix: FileRecord(**fields["files"][suffix]) for suffix in SUFFIXES}
        manifest = Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a dataset manifest ({error}); make the dataset anew") from None
    for suffix, expected in manifest.files.items():
        file = Path(f"{prefix}.{suffix}")
        found = file.stat().st_size if file.is_file() else None
        if found != expected.num_bytes:
            raise UserError(f"{file}: has {found} bytes, its manifest says {expected.num_bytes}; copy or make the dataset anew")
    return manifest


def write_manifest(prefix: str, manifest: Manifest) -> None:
    """Write it whole or not at all."""
    path = manifest_path(prefix)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(dataclasses.asdict(manifest), stream, indent=1, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
