"""Pairs in text, or published tokenised pairs -> tokenised datasets: scan, tokenise in parts, merge, describe."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_longpo.data import layout, text_source
from megatron_longpo.data.bad_records import OnBadRecord
from megatron_longpo.data.import_longpo import scan_tokenized
from megatron_longpo.data.indexed import write_indexed
from megatron_longpo.data.manifest import Manifest, TokenizerRecord, data_hash, manifest_path, read_manifest, write_manifest
from megatron_longpo.data.parts import Unit, load_once, part_path, read_pairs, read_tally, run_units
from megatron_longpo.data.processes import Processes
from megatron_longpo.data.selection import SPLIT_NAMES, parse_shares
from megatron_longpo.data.tally import Tally
from megatron_longpo.data.text_source import TextInput, TextOptions, scan_text
from megatron_longpo.data.tokenize_pair import DropReason, LengthLimits
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.progress import progress_bar

InputFormat = Literal["jsonl", "longpo-tokenized"]
SEED = 42
WORKER_IMPORTS = ("megatron_longpo.data.parts", "transformers.models.auto.tokenization_auto")
"""What every worker needs, and takes seconds to import."""


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
        split: shares of train, validation and perhaps test, such as ``98,2``: a dataset for each, ``PREFIX-train`` and so on.
        seed: of the split, and of the choice of an input's records.
        deduplicate: keep one record of each document.
        on_bad_record: what a line that is no record does: ``fail``, or ``skip`` it and list it in ``PREFIX.bad.jsonl``.
        workers: processes.
        overwrite: replace another dataset at the prefix.
    """

    inputs: tuple[str, ...]
    output_prefix: str
    tokenizer: TokenizerSpec | None
    seq_length: int
    short_seq_length: int | None = None
    input_format: InputFormat = "jsonl"
    split: str | None = None
    seed: int = SEED
    deduplicate: bool = True
    on_bad_record: OnBadRecord = "fail"
    workers: int = 1
    overwrite: bool = False

    def shares(self) -> tuple[float, ...]:
        """Of the datasets that are made."""
        return parse_shares(self.split) if self.split else (1.0,)

    def prefixes(self) -> tuple[str, ...]:
        """Of the datasets that are made."""
        names = SPLIT_NAMES[: len(self.shares())]
        return tuple(f"{self.output_prefix}-{name}" for name in names) if self.split else (self.output_prefix,)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Units of work; what the inputs are, and what is taken of them; how many duplicates are left out of each dataset."""

    units: Sequence[Unit]
    inputs: list[dict[str, Any]]
    choice: dict[str, Any]
    duplicates: Sequence[int]


def preprocess(options: PreprocessOptions) -> tuple[Manifest, bool]:
    """Make one dataset, without a split; see `preprocess_all`."""
    assert options.split is None
    manifests, worked = preprocess_all(options)
    return manifests[options.output_prefix], worked


def preprocess_all(options: PreprocessOptions) -> tuple[dict[str, Manifest], bool]:
    """Make the datasets, unless they are there already; an interrupted run goes on where it stopped.

    Returns:
        The manifest of each prefix, and whether there was anything to do.

    Raises:
        UserError: an input is bad, another dataset is at a prefix, no pair is left for one, or a file cannot be written.
    """
    try:
        return _preprocess(options)
    except OSError as error:  # a full disk, a folder that may not be written
        where, what = error.filename or options.output_prefix, error.strerror or error
        raise UserError(f"{where}: {what}; run the command again to go on") from error
    finally:
        load_once.cache_clear()  # of this process, where the folder may hold another tokenizer next time


def _preprocess(options: PreprocessOptions) -> tuple[dict[str, Manifest], bool]:
    prefixes = options.prefixes()
    with Processes(options.workers, WORKER_IMPORTS if options.tokenizer else ()) as processes:
        tokenizer = _describe_tokenizer(options, processes)
        plan = _scan(options, processes)
        job = {
            "input_format": options.input_format,
            "inputs": plan.inputs,
            **plan.choice,
            "seq_length": options.seq_length,
            "short_seq_length": options.short_seq_length,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "template_fingerprint": tokenizer.template_fingerprint,
            "format_version": layout.FORMAT_VERSION,
        }
        existing = {prefix: _existing(prefix, job, options.overwrite) for prefix in prefixes}
        if all(existing.values()):
            return {prefix: manifest for prefix, manifest in existing.items() if manifest}, False
        folder = _open_work_folder(options.output_prefix, {"job": job, "unit_bytes": text_source.UNIT_BYTES})
        limits = LengthLimits(options.seq_length, options.short_seq_length)
        run_units(plan.units, folder, options.tokenizer, limits, processes)
    manifests = _merge(options, folder, plan, tokenizer, job)
    shutil.rmtree(folder)
    return manifests, True


def _describe_tokenizer(options: PreprocessOptions, processes: Processes) -> TokenizerRecord:
    if options.tokenizer is None:
        if options.input_format == "jsonl":
            raise UserError("--tokenizer-model is needed to tokenise text")
        return TokenizerRecord()
    record, uses_date = next(processes.in_order(_describe, [(options.tokenizer,)]))
    if uses_date and options.input_format == "jsonl":
        print(
            "warning: the chat template prints today's date; fix it, if the template allows, with --chat-template-arguments",
            file=sys.stderr,
        )
    return record


def _describe(spec: TokenizerSpec) -> tuple[TokenizerRecord, bool]:
    """What is recorded of a tokenizer, and whether its template prints the date. A worker does it, which loads it anyway."""
    tokenizer = load_once(spec).tokenizer
    record = TokenizerRecord(
        source=spec.path,
        fingerprint=tokenizer.fingerprint,
        template_fingerprint=tokenizer.template_fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return record, tokenizer.template_uses_date


def _scan(options: PreprocessOptions, processes: Processes) -> _Plan:
    if options.input_format == "jsonl":
        sources = [TextInput.parse(text) for text in options.inputs]
        choice = TextOptions(
            seed=options.seed, shares=options.shares(), deduplicate=options.deduplicate, on_bad_record=options.on_bad_record
        )
        side_file = Path(f"{options.output_prefix}.bad.jsonl")
        with _checking([source.path for source in sources]) as progress:
            plan = scan_text(sources, choice, side_file, processes, progress)
        described = {"seed": options.seed, "split": options.split, "deduplicate": options.deduplicate}
        return _Plan(plan.units, plan.inputs, described, plan.duplicates)
    given = {"split": options.split, "no-deduplicate": not options.deduplicate, "on-bad-record": options.on_bad_record != "fail"}
    for name in (name for name, value in given.items() if value):
        raise UserError(f"--{name} is for --input-format jsonl; tokenised data are taken as they are")
    with _checking(options.inputs) as progress:
        units, inputs = scan_tokenized(options.inputs, progress)
    return _Plan(units, inputs, {}, (0,))


@contextlib.contextmanager
def _checking(paths: Sequence[str]) -> Iterator[Callable[[int], object]]:
    with progress_bar(desc="checking", total=sum(_size(Path(path)) for path in paths), unit="B", unit_scale=True) as bar:
        yield bar.update


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _existing(prefix: str, job: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of an equal dataset at the prefix, if one is there; a different one is in the way."""
    if not manifest_path(prefix).exists() or overwrite:
        return None
    manifest = read_manifest(prefix)
    if manifest.job == job:
        return manifest
    different = sorted(name for name in job if manifest.job.get(name) != job[name])
    raise UserError(
        f"{manifest_path(prefix)}: holds a dataset made with other settings ({', '.join(different)}); "
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


def _merge(
    options: PreprocessOptions, folder: Path, plan: _Plan, tokenizer: TokenizerRecord, job: dict[str, Any]
) -> dict[str, Manifest]:
    """Write the datasets from their parts, in order; none if one of them would be empty."""
    paths = [part_path(folder, index) for index in range(len(plan.units))]
    tallies = {}
    for output, prefix in enumerate(options.prefixes()):
        tally = tallies[prefix] = Tally()
        for path in paths:
            tally.add(read_tally(path, output))
        if plan.duplicates[output]:
            tally.drops[DropReason.DUPLICATE_DOCUMENT.value] += plan.duplicates[output]
        if tally.num_pairs == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.drops.most_common())
            where = f" for {prefix}" if options.split else ""
            raise UserError(f"{', '.join(options.inputs)}: no pair is left{where} ({reasons or 'there are no records'})")
    return {
        prefix: _write(options, prefix, _sequences(paths, output), tally, tokenizer, job)
        for output, (prefix, tally) in enumerate(tallies.items())
    }


def _sequences(paths: Sequence[Path], output: int) -> Iterator[list[np.ndarray]]:
    for path in progress_bar(paths, desc="merging", unit="part"):
        yield from read_pairs(path, output)


def _write(
    options: PreprocessOptions,
    prefix: str,
    pairs: Iterator[list[np.ndarray]],
    tally: Tally,
    tokenizer: TokenizerRecord,
    job: dict[str, Any],
) -> Manifest:
    """Write one dataset, its manifest last."""
    files = write_indexed(prefix, pairs)
    manifest = Manifest(
        num_records=tally.num_pairs + tally.drops.total(),
        num_pairs=tally.num_pairs,
        num_turns=tally.num_turns,
        max_turns=tally.max_turns,
        max_token_id=tally.max_token_id,
        seq_length=options.seq_length,
        short_seq_length=options.short_seq_length,
        drops=dict(sorted(tally.drops.items())),
        lengths=tally.summary(),
        tokenizer=tokenizer,
        job=job,
        files=files,
        data_hash=data_hash(files),
    )
    write_manifest(prefix, manifest)
    return manifest
