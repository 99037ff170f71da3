"""Pairs in text, or published tokenised pairs -> a tokenised dataset: scan, tokenise in parts, merge, describe."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from megatron_longpo.data import layout
from megatron_longpo.data.import_longpo import scan_tokenized
from megatron_longpo.data.indexed import write_indexed
from megatron_longpo.data.manifest import Manifest, TokenizerRecord, data_hash, manifest_path, read_manifest, write_manifest
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.parts import Unit, part_path, read_part, run_units
from megatron_longpo.data.text_source import scan_text
from megatron_longpo.data.tokenize_pair import LengthLimits
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError

InputFormat = Literal["jsonl", "longpo-tokenized"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """What to preprocess, and how.

    Attributes:
        inputs: files (or folders, for ``longpo-tokenized``).
        output_prefix: path of the dataset without suffix.
        tokenizer: needed for ``jsonl``; names the tokenizer of data that is tokenised already.
        seq_length: longest long side, in tokens.
        short_seq_length: longest short side; None: no limit.
        input_format: of the inputs.
        workers: processes.
        overwrite: replace another dataset at the prefix.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer: TokenizerSpec | None
    seq_length: int
    short_seq_length: int | None = None
    input_format: InputFormat = "jsonl"
    workers: int = 1
    overwrite: bool = False


def preprocess(options: PreprocessOptions) -> tuple[Manifest, bool]:
    """Make the dataset, unless it is there already; an interrupted run goes on where it stopped.

    Returns:
        The manifest, and whether there was anything to do.

    Raises:
        UserError: an input is bad, another dataset is at the prefix, or no pair is left.
    """
    tokenizer = _describe_tokenizer(options)
    units, inputs = _scan(options)
    job = {
        "input_format": options.input_format,
        "inputs": inputs,
        "seq_length": options.seq_length,
        "short_seq_length": options.short_seq_length,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "template_fingerprint": tokenizer.template_fingerprint,
        "format_version": layout.FORMAT_VERSION,
    }
    existing = _existing(options, job)
    if existing is not None:
        return existing, False
    folder = _open_work_folder(options.output_prefix, job)
    limits = LengthLimits(options.seq_length, options.short_seq_length)
    run_units(units, folder, options.tokenizer, limits, options.workers)
    manifest = _merge(options, folder, len(units), tokenizer, job)
    shutil.rmtree(folder)
    return manifest, True


def _describe_tokenizer(options: PreprocessOptions) -> TokenizerRecord:
    if options.tokenizer is None:
        if options.input_format == "jsonl":
            raise UserError("--tokenizer-model is needed to tokenise text")
        return TokenizerRecord()
    tokenizer = options.tokenizer.load()
    if tokenizer.template_uses_date and options.input_format == "jsonl":
        print(
            "warning: the chat template prints today's date; fix it, if the template allows, with --chat-template-arguments",
            file=sys.stderr,
        )
    return TokenizerRecord(
        source=options.tokenizer.path,
        fingerprint=tokenizer.fingerprint,
        template_fingerprint=tokenizer.template_fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _scan(options: PreprocessOptions) -> tuple[Sequence[Unit], list[dict[str, str]]]:
    total = sum(_size(Path(path)) for path in options.inputs)
    with tqdm(desc="checking", total=total, unit="B", unit_scale=True, disable=None) as bar:
        if options.input_format == "jsonl":
            return scan_text(options.inputs, bar.update)
        return scan_tokenized(options.inputs, bar.update)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _existing(options: PreprocessOptions, job: dict[str, Any]) -> Manifest | None:
    """The manifest of an equal dataset at the prefix, if one is there; a different one is in the way."""
    if not manifest_path(options.output_prefix).exists() or options.overwrite:
        return None
    manifest = read_manifest(options.output_prefix)
    if manifest.job == job:
        return manifest
    different = sorted(name for name in job if manifest.job.get(name) != job[name])
    raise UserError(
        f"{manifest_path(options.output_prefix)}: holds a dataset made with other settings ({', '.join(different)}); "
        "choose another --output-prefix, or replace it with --overwrite"
    )


def _open_work_folder(prefix: str, job: dict[str, Any]) -> Path:
    """``PREFIX.partial/``: parts of an interrupted equal job stay, those of any other go."""
    folder = Path(f"{prefix}.partial")
    description = folder / "job.json"
    text = json.dumps(job, indent=1)
    if not description.exists() or description.read_text(encoding="utf-8") != text:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        description.write_text(text, encoding="utf-8")
    return folder


class _Lengths:
    """Running count, minimum, sum and maximum by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[int]] = {}

    def add(self, name: str, value: int) -> None:
        count, low, total, high = self._values.get(name, (0, value, 0, value))
        self._values[name] = [count + 1, min(low, value), total + value, max(high, value)]

    def summary(self) -> dict[str, dict[str, float]]:
        return {
            name: {"count": count, "minimum": low, "mean": round(total / count, 2), "maximum": high}
            for name, (count, low, total, high) in sorted(self._values.items())
        }


class _Tally:
    """What is counted while the parts are merged."""

    def __init__(self) -> None:
        self.lengths = _Lengths()
        self.drops: collections.Counter[str] = collections.Counter()
        self.num_turns = self.max_turns = 0
        self.max_token_id = 0

    def add(self, pair: PreferencePair) -> None:
        self.num_turns += pair.num_turns
        self.max_turns = max(self.max_turns, pair.num_turns)
        prefix = layout.shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids)
        self.lengths.add("shared_prefix", prefix)
        sides = {
            "chosen": [pair.chosen],
            "rejected": [pair.rejected],
            "short_chosen": pair.short_chosen,
            "short_rejected": pair.short_rejected,
        }
        for name, group in sides.items():
            for side in group:
                self.lengths.add(name, len(side.input_ids))
                self.max_token_id = max(self.max_token_id, int(side.input_ids.max()))
        for start, end in (*pair.chosen.answer_spans, *pair.rejected.answer_spans):
            self.lengths.add("answer", end - start)


def _merge(options: PreprocessOptions, folder: Path, num_parts: int, tokenizer: TokenizerRecord, job: dict[str, Any]) -> Manifest:
    """Write the dataset from its parts, in order; the manifest last."""
    tally = _Tally()
    num_pairs = 0
    for index in range(num_parts):
        part = read_part(part_path(folder, index))
        tally.drops.update(part.drops)
        num_pairs += len(part.num_sequences)
    if num_pairs == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.drops.most_common())
        raise UserError(f"{', '.join(options.inputs)}: no pair is left ({reasons or 'there are no records'})")

    def pairs() -> Iterator[list[np.ndarray]]:
        for index in tqdm(range(num_parts), desc="merging", unit="part", disable=None):
            for sequences in read_part(part_path(folder, index)).documents():
                tally.add(layout.unpack_pair(sequences))
                yield sequences

    files = write_indexed(options.output_prefix, pairs())
    manifest = Manifest(
        num_records=num_pairs + tally.drops.total(),
        num_pairs=num_pairs,
        num_turns=tally.num_turns,
        max_turns=tally.max_turns,
        max_token_id=tally.max_token_id,
        seq_length=options.seq_length,
        short_seq_length=options.short_seq_length,
        drops=dict(sorted(tally.drops.items())),
        lengths=tally.lengths.summary(),
        tokenizer=tokenizer,
        job=job,
        files=files,
        data_hash=data_hash(files),
    )
    write_manifest(options.output_prefix, manifest)
    return manifest
