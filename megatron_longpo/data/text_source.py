"""Preference records in JSON Lines files: checked, chosen, and cut into units of work."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data import jsonl
from megatron_longpo.data.bad_records import BadRecords, OnBadRecord
from megatron_longpo.data.manifest import record_file
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.processes import Processes
from megatron_longpo.data.record import RecordError, read_record
from megatron_longpo.data.scan import DIGEST_BYTES, Scan, scan_range
from megatron_longpo.data.selection import NOWHERE, Selection, first_equal, select
from megatron_longpo.data.tokenize_pair import DroppedError, DropReason, LengthLimits, RecordTokenizer
from megatron_longpo.utils.errors import UserError

UNIT_BYTES = 4 << 20
"""A unit ends with the line that passes this size: seconds of work, whatever the number of workers."""


@dataclasses.dataclass(frozen=True)
class TextUnit:
    """Some lines of a file.

    Attributes:
        path: the file.
        start: first byte.
        end: one past the last byte.
        places: for each line that is not blank, the number of the dataset that its record goes to, or `NOWHERE`.
        digest: of the lines, as they were checked.
    """

    path: str
    start: int
    end: int
    places: bytes
    digest: bytes

    @property
    def num_bytes(self) -> int:
        """Size, for the progress bar."""
        return self.end - self.start

    @property
    def outputs(self) -> list[int]:
        """The dataset of each record of `pairs`."""
        return [place for place in self.places if place != NOWHERE]

    def pairs(self, tokenizer: RecordTokenizer | None, limits: LengthLimits) -> Iterator[PreferencePair | DropReason]:
        """The pair of each record, or why there is none, in the file's order."""
        assert tokenizer is not None
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        changed = UserError(f"{self.path}: changed while it was read; run the command again")
        places = iter(self.places)
        for line in jsonl.lines(self.path, self.start, self.end):
            digest.update(line or b"")
            if (line is not None and not line.strip()) or next(places, NOWHERE) == NOWHERE:
                continue
            try:
                record = read_record(line or b"")
            except RecordError:  # every line that is tokenised was a record when it was checked
                raise changed from None
            try:
                yield tokenizer.pair(record, limits)
            except DroppedError as dropped:
                yield dropped.reason
        if digest.digest() != self.digest:
            raise changed


@dataclasses.dataclass(frozen=True)
class TextInput:
    """One ``--input``.

    Attributes:
        path: the file.
        take: how many of its records to take; None takes all.
    """

    path: str
    take: int | None

    @classmethod
    def parse(cls, text: str) -> TextInput:
        """Read ``PATH`` or ``PATH#N``. A file whose name looks like the latter is itself."""
        found = re.fullmatch(r"(.+)#(\d+)", text, re.DOTALL)
        if found is None or Path(text).exists():
            return cls(text, None)
        if int(found[2]) == 0:
            raise UserError(f"--input {text}: takes no record; leave the input out")
        return cls(found[1], int(found[2]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What to take of the inputs.

    Attributes:
        seed: of the choice and the division.
        shares: of the datasets.
        deduplicate: take each document once.
        on_bad_record: what a line that is no record does: end the run, or be left out and listed.
    """

    seed: int
    shares: tuple[float, ...] = (1.0,)
    deduplicate: bool = True
    on_bad_record: OnBadRecord = "fail"


@dataclasses.dataclass(frozen=True)
class TextPlan:
    """What there is to do.

    Attributes:
        units: in order.
        inputs: name, SHA-256 and counts of each input.
        duplicates: for each dataset, records left out because their document is in it.
    """

    units: list[TextUnit]
    inputs: list[dict[str, Any]]
    duplicates: tuple[int, ...]


def scan_text(
    inputs: Sequence[TextInput], options: TextOptions, side_file: Path, processes: Processes, progress: Callable[[int], object]
) -> TextPlan:
    """Check every line before any work is done, choose records, and cut the files into units.

    Args:
        inputs: JSON Lines files.
        options: what to take.
        side_file: where lines are listed that are no records, when they are left out.
        processes: that read.
        progress: is told the bytes as they are read.

    Raises:
        UserError: a file cannot be read, a line is no record and that is fatal, no line is one, a document id stands for two
            documents, or an input has fewer records than it is to give.
    """
    ranges = [[(of.path, *bounds) for bounds in jsonl.cut(of.path, UNIT_BYTES)] for of in inputs]
    tasks = ((*bounds, options.seed, options.on_bad_record == "fail") for group in ranges for bounds in group)
    scans = []
    with BadRecords(side_file, options.on_bad_record) as bad_records:
        for scan in processes.in_order(scan_range, tasks):
            bad_records.add(scan)
            scans.append(dataclasses.replace(scan, packed_problems=b""))
            progress(scan.end - scan.start)
    counts = [int(scan.is_record.sum()) for scan in scans]
    ends = np.cumsum([0, *map(len, ranges)])
    groups = [slice(start, end) for start, end in itertools.pairwise(ends.tolist())]
    if not any(counts):
        raise UserError(f"{', '.join(of.path for of in inputs)}: no line is a record")
    ids = np.concatenate([np.empty((0, 2), np.uint64), *(scan.ids for scan in scans)])
    contents = np.concatenate([np.empty((0, 2), np.uint64), *(scan.contents for scan in scans)])
    _check_unique(scans, ids, contents, options.deduplicate)
    input_counts = [sum(counts[group]) for group in groups]
    selection = select(contents, input_counts, [of.take for of in inputs], options.shares, options.deduplicate)
    hashes = processes.in_order(record_file, ((Path(of.path),) for of in inputs))
    described = [
        {
            "name": Path(of.path).name,
            "sha256": record.sha256,
            "records": input_counts[index],
            "bad_lines": sum(len(scan.is_record) for scan in scans[groups[index]]) - input_counts[index],
            "taken": selection.taken[index],
        }
        for index, (of, record) in enumerate(zip(inputs, hashes, strict=True))
    ]
    return TextPlan(_units(scans, selection), described, selection.duplicates)


def _units(scans: Sequence[Scan], selection: Selection) -> list[TextUnit]:
    """The ranges that hold anything to do."""
    units, start = [], 0
    for scan in scans:
        places = np.full(len(scan.is_record), NOWHERE, dtype=np.uint8)
        count = len(scan.ids)
        places[scan.is_record] = selection.outputs[start : start + count]
        start += count
        if (places != NOWHERE).any():
            units.append(TextUnit(scan.path, scan.start, scan.end, places.tobytes(), scan.digest))
    return units


def _check_unique(scans: Sequence[Scan], ids: np.ndarray, contents: np.ndarray, deduplicate: bool) -> None:
    """An id stands for one document; for one record if documents are not deduplicated."""
    first = first_equal(ids)
    again = first != np.arange(len(ids))
    if deduplicate:
        again &= (contents != contents[first]).any(axis=1)
    if again.any():
        later = int(np.argmax(again))
        earlier_place, _ = _find(scans, int(first[later]))
        place, document_id = _find(scans, later)
        raise UserError(f"{place}: document_id: {document_id!r} is taken by {earlier_place}; give each document a unique id")


def _find(scans: Sequence[Scan], index: int) -> tuple[str, str]:
    """``file:line`` and document id of a record, which is read again."""
    lines_before = 0
    for scan in scans:
        lines_before = 0 if scan.start == 0 else lines_before
        if index < len(scan.ids):
            break
        index -= len(scan.ids)
        lines_before += scan.num_lines
    entry = int(np.flatnonzero(scan.is_record)[index])
    numbered = enumerate(jsonl.lines(scan.path, scan.start, scan.end), start=1)
    filled = ((number, line) for number, line in numbered if line is None or line.strip())
    number, line = next(itertools.islice(filled, entry, None))
    return f"{scan.path}:{lines_before + number}", read_record(line or b"").document_id
