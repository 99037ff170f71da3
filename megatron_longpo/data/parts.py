"""Units of preprocessing: each becomes one file, so that work spreads over processes and an interrupted run goes on."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_longpo.data.layout import pack_pair
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.processes import Processes
from megatron_longpo.data.tally import Tally
from megatron_longpo.data.tokenize_pair import DropReason, LengthLimits, RecordTokenizer
from megatron_longpo.data.tokenizer import TokenizerSpec
from megatron_longpo.utils.progress import progress_bar


class Unit(Protocol):
    """A stretch of the input, small enough to send to a worker."""

    @property
    def num_bytes(self) -> int:
        """Size, for the progress bar."""

    @property
    def outputs(self) -> Iterable[int]:
        """The number of the dataset that each record of `pairs` goes to."""

    def pairs(self, tokenizer: RecordTokenizer | None, limits: LengthLimits) -> Iterator[PreferencePair | DropReason]:
        """The pair of each record, or why there is none, in order."""


class Part:
    """What one unit gives to one dataset: a member of the unit's file."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sequences: list[np.ndarray] = []
        self._counts: list[int] = []
        self._tally = Tally()

    def add(self, result: PreferencePair | DropReason) -> None:
        """Add a pair, or count a dropped record."""
        if isinstance(result, DropReason):
            self._tally.drops[result.value] += 1
            return
        packed = pack_pair(result)
        self._sequences += packed
        self._counts.append(len(packed))
        self._tally.add_pair(result)

    def arrays(self, output: int) -> dict[str, np.ndarray]:
        """The part as named arrays: tokens of all sequences, length of each, number of each pair's, and the tally."""
        return {
            f"tokens-{output}": np.concatenate([np.zeros(0, np.int32), *self._sequences]),
            f"sequence_lengths-{output}": np.array([len(sequence) for sequence in self._sequences], np.int32),
            f"num_sequences-{output}": np.array(self._counts, np.int32),
            f"tally-{output}": np.array(json.dumps(self._tally.to_json())),
        }


def run_units(
    units: Sequence[Unit], folder: Path, spec: TokenizerSpec | None, limits: LengthLimits, processes: Processes
) -> None:
    """Make the part of every unit that has none yet.

    Args:
        units: in order; part ``i`` is that of unit ``i``.
        folder: where parts go.
        spec: the tokenizer, loaded once in each process.
        limits: longest chats.
        processes: that work.

    Raises:
        UserError: a unit cannot be read, or a worker died.
    """
    missing = [index for index in range(len(units)) if not part_path(folder, index).exists()]
    total = sum(unit.num_bytes for unit in units)
    done = total - sum(units[index].num_bytes for index in missing)
    with progress_bar(desc="tokenising", total=total, initial=done, unit="B", unit_scale=True) as bar:
        tasks = ((units[index], part_path(folder, index), limits) for index in missing)
        for num_bytes in processes.as_finished(functools.partial(_work, spec), tasks):
            bar.update(num_bytes)


def _work(spec: TokenizerSpec | None, unit: Unit, path: Path, limits: LengthLimits) -> int:
    """Make one part with the tokenizer that this process has loaded once."""
    return _make_part(unit, path, load_once(spec) if spec else None, limits)


@functools.cache
def load_once(spec: TokenizerSpec) -> RecordTokenizer:
    """A tokenizer, loaded once in each process that works."""
    return RecordTokenizer(spec.load())


def _make_part(unit: Unit, path: Path, tokenizer: RecordTokenizer | None, limits: LengthLimits) -> int:
    """Write a unit's part, whole or not at all; returns the unit's bytes."""
    parts: dict[int, Part] = {}
    for result, output in zip(unit.pairs(tokenizer, limits), unit.outputs, strict=False):  # outputs may be endless
        parts.setdefault(output, Part()).add(result)
    arrays: dict[str, Any] = {}
    for output, part in parts.items():
        arrays |= part.arrays(output)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return unit.num_bytes


def part_path(folder: Path, index: int) -> Path:
    """Where the part of unit ``index`` lies."""
    return folder / f"part-{index:06d}.npz"


def read_tally(path: Path, output: int) -> Tally:
    """What a part gives to a dataset, in numbers."""
    with np.load(path, allow_pickle=False) as arrays:
        name = f"tally-{output}"
        return Tally.from_json(json.loads(str(arrays[name]))) if name in arrays else Tally()


def read_pairs(path: Path, output: int) -> Iterator[list[np.ndarray]]:
    """The sequences of each pair that a part gives to a dataset."""
    with np.load(path, allow_pickle=False) as arrays:
        if f"tokens-{output}" not in arrays:
            return
        lengths = arrays[f"sequence_lengths-{output}"]
        sequences = iter(np.split(arrays[f"tokens-{output}"], np.cumsum(lengths)[:-1]))
        for count in arrays[f"num_sequences-{output}"]:
            yield [next(sequences) for _ in range(count)]
