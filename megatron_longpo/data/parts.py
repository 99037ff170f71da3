"""Units of preprocessing: each becomes one file, so that work spreads over processes and an interrupted run goes on."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from megatron_longpo.data.layout import pack_pair
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.tokenize_pair import DropReason, LengthLimits
from megatron_longpo.data.tokenizer import ChatTokenizer, TokenizerSpec
from megatron_longpo.utils.errors import UserError


class Unit(Protocol):
    """A stretch of the input, small enough to send to a worker."""

    @property
    def num_bytes(self) -> int:
        """Size, for the progress bar."""

    def pairs(self, tokenizer: ChatTokenizer | None, limits: LengthLimits) -> Iterator[PreferencePair | DropReason]:
        """The pair of each record, or why there is none, in order."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The result of one unit.

    Attributes:
        tokens: int32: all sequences of all pairs, end to end.
        sequence_lengths: int32: the length of each sequence.
        num_sequences: int32 ``[pairs]``: how many sequences each pair has.
        drops: number of records dropped, by reason.
    """

    tokens: np.ndarray
    sequence_lengths: np.ndarray
    num_sequences: np.ndarray
    drops: dict[str, int]

    def documents(self) -> Iterator[list[np.ndarray]]:
        """Each pair's sequences."""
        sequences = iter(np.split(self.tokens, np.cumsum(self.sequence_lengths)[:-1]))
        for count in self.num_sequences:
            yield [next(sequences) for _ in range(count)]


def run_units(units: Sequence[Unit], folder: Path, spec: TokenizerSpec | None, limits: LengthLimits, workers: int) -> None:
    """Make the part of every unit that has none yet.

    Args:
        units: in order; part ``i`` is that of unit ``i``.
        folder: where parts go.
        spec: the tokenizer, loaded once in each process.
        limits: longest chats.
        workers: processes; 1 works in this one.

    Raises:
        UserError: a unit cannot be read, or a worker died.
    """
    missing = [index for index in range(len(units)) if not part_path(folder, index).exists()]
    total = sum(unit.num_bytes for unit in units)
    done = total - sum(units[index].num_bytes for index in missing)
    with tqdm(desc="tokenising", total=total, initial=done, unit="B", unit_scale=True, disable=None) as bar:
        if min(workers, len(missing)) <= 1:
            tokenizer = spec.load() if spec and missing else None
            for index in missing:
                bar.update(_make_part(units[index], part_path(folder, index), tokenizer, limits))
        else:
            _run_in_processes(units, missing, folder, spec, limits, min(workers, len(missing)), bar)


def _run_in_processes(
    units: Sequence[Unit],
    missing: list[int],
    folder: Path,
    spec: TokenizerSpec | None,
    limits: LengthLimits,
    workers: int,
    bar: tqdm,
) -> None:
    # Spawned, not forked: tokenizers and torch start threads, which do not survive a fork.
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        waiting: set[Future[int]] = {
            executor.submit(_work, units[index], part_path(folder, index), spec, limits) for index in missing
        }
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                bar.update(future.result())
    except BrokenProcessPool:
        raise UserError("a worker process died (out of memory?); run the command again, with fewer --workers, to go on") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _work(unit: Unit, path: Path, spec: TokenizerSpec | None, limits: LengthLimits) -> int:
    """In a worker process: make one part with the tokenizer that this process has loaded once."""
    return _make_part(unit, path, _load_once(spec) if spec else None, limits)


@functools.cache
def _load_once(spec: TokenizerSpec) -> ChatTokenizer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    return spec.load()


def _make_part(unit: Unit, path: Path, tokenizer: ChatTokenizer | None, limits: LengthLimits) -> int:
    """Write a unit's part, whole or not at all; returns the unit's bytes."""
    sequences: list[np.ndarray] = []
    counts: list[int] = []
    drops: collections.Counter[str] = collections.Counter()
    for result in unit.pairs(tokenizer, limits):
        if isinstance(result, DropReason):
            drops[result.value] += 1
            continue
        packed = pack_pair(result)
        sequences += packed
        counts.append(len(packed))
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        np.savez(
            stream,
            tokens=np.concatenate(sequences) if sequences else np.zeros(0, np.int32),
            sequence_lengths=np.array([len(sequence) for sequence in sequences], np.int32),
            num_sequences=np.array(counts, np.int32),
            drops=np.array(json.dumps(drops)),
        )
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return unit.num_bytes


def part_path(folder: Path, index: int) -> Path:
    """Where the part of unit ``index`` lies."""
    return folder / f"part-{index:06d}.npz"


def read_part(path: Path) -> Part:
    """Read a part."""
    with np.load(path, allow_pickle=False) as arrays:
        return Part(arrays["tokens"], arrays["sequence_lengths"], arrays["num_sequences"], json.loads(str(arrays["drops"])))
