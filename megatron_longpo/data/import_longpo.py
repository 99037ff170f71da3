"""The published, already tokenised LongPO data sets (parquet files, or a folder written by ``Dataset.save_to_disk``)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.manifest import record_file
from megatron_longpo.data.pair import PreferencePair, Side, Span
from megatron_longpo.data.tokenize_pair import DroppedError, DropReason, LengthLimits, RecordTokenizer
from megatron_longpo.utils.constants import IGNORE_INDEX
from megatron_longpo.utils.errors import UserError

LONG_COLUMNS = tuple(f"{side}_{kind}" for side in ("chosen", "rejected") for kind in ("input_ids", "attention_mask", "labels"))
SHORT_COLUMNS = tuple(f"ref_{name}" for name in LONG_COLUMNS)
COLUMNS = (*LONG_COLUMNS, "chosen_lm_labels", *SHORT_COLUMNS)
ROWS_PER_UNIT = 32


@dataclasses.dataclass(frozen=True)
class TokenizedUnit:
    """Some rows of one file.

    Attributes:
        path: a parquet file, or an arrow file of a saved data set.
        name: what document ids begin with.
        first_row: the first row, in the file.
        last_row: one past the last row.
        num_bytes: share of the file's size, for the progress bar.
    """

    path: str
    name: str
    first_row: int
    last_row: int
    num_bytes: int

    @property
    def outputs(self) -> Iterable[int]:
        """All rows belong to the one output."""
        return itertools.repeat(0)

    def pairs(self, tokenizer: RecordTokenizer | None, limits: LengthLimits) -> Iterator[PreferencePair | DropReason]:
        """The pair of each row, or why there is none."""
        for number, row in enumerate(self._rows(), start=self.first_row):
            try:
                pair = pair_from_row(row, f"{self.name}:{number}")
                limits.check(pair)
            except DroppedError as dropped:
                yield dropped.reason
                continue
            if tokenizer is not None:
                _check_vocabulary(pair, tokenizer.tokenizer.vocab_size)
            yield pair

    def _rows(self) -> Iterator[dict[str, Any]]:
        """One row at a time; groups of rows that hold none of them are not read."""
        position = 0
        for num_rows, read in TableFile(Path(self.path)).groups():
            first, last = max(self.first_row, position), min(self.last_row, position + num_rows)
            if first < last:
                for number, batch in enumerate(read(), start=position):
                    if first <= number < last:
                        yield {column: batch.column(batch.schema.get_field_index(column))[0] for column in COLUMNS}
            position += num_rows


class TableFile:
    """A parquet file, or an arrow stream as ``Dataset.save_to_disk`` writes it."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            UserError: it is neither.
        """
        import pyarrow
        import pyarrow.parquet

        self._parquet = None
        try:
            if path.suffix == ".arrow":
                self._batches = list(pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))))
                self.columns = self._batches[0].schema.names if self._batches else []
            else:
                self._parquet = pyarrow.parquet.ParquetFile(path, memory_map=True)
                self.columns = self._parquet.schema_arrow.names
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a readable parquet or arrow file ({reason}); fetch it again") from None

    def groups(self) -> Iterator[tuple[int, Callable[[], Iterator[Any]]]]:
        """Row counts of the file's groups, each with a function that reads the group row by row."""
        if self._parquet is None:
            for batch in self._batches:
                yield batch.num_rows, functools.partial(map, lambda row, of=batch: of.slice(row, 1), range(batch.num_rows))
            return
        for group in range(self._parquet.num_row_groups):
            read = functools.partial(self._parquet.iter_batches, 1, row_groups=[group], columns=list(COLUMNS))
            yield self._parquet.metadata.row_group(group).num_rows, read


def scan_tokenized(paths: Sequence[str], progress: Callable[[int], object]) -> tuple[list[TokenizedUnit], list[dict[str, Any]]]:
    """Hash the inputs, check their columns and cut them into units.

    Args:
        paths: parquet files, folders of them, or folders written by ``save_to_disk``.
        progress: is told the bytes as they are read.

    Returns:
        The units in order, and name and SHA-256 of each file.

    Raises:
        UserError: an input is none of these, lacks a column, or two have the same name.
    """
    units: list[TokenizedUnit] = []
    inputs = []
    for path, name in _files(paths):
        record = record_file(path, progress)
        inputs.append({"name": name, "sha256": record.sha256})
        file = TableFile(path)
        missing = [column for column in COLUMNS if column not in file.columns]
        if missing:
            raise UserError(f"{path}: lacks the column {missing[0]!r}; give a tokenised LongPO data set")
        num_rows = sum(count for count, _ in file.groups())
        for first in range(0, num_rows, ROWS_PER_UNIT):
            last = min(first + ROWS_PER_UNIT, num_rows)
            units.append(TokenizedUnit(str(path), name, first, last, record.num_bytes * (last - first) // num_rows))
    return units, inputs


def _files(paths: Sequence[str]) -> list[tuple[Path, str]]:
    """Each file, with the name that its rows go by."""
    found: list[tuple[Path, str]] = []
    for given in paths:
        path = Path(given)
        if path.is_file():
            found.append((path, path.stem))
        elif (path / "state.json").is_file():
            found += [(path / name, f"{path.name}/{Path(name).stem}") for name in _saved_files(path)]
        elif (path / "dataset_dict.json").is_file():
            splits = ", ".join(str(state.parent) for state in sorted(path.glob("*/state.json")))
            raise UserError(f"--input {given}: holds several splits; give one of them: {splits}")
        else:
            found += [(file, file.relative_to(path).with_suffix("").as_posix()) for file in sorted(path.rglob("*.parquet"))]
        if not found:
            raise UserError(f"--input {given}: neither a parquet file, a folder of them, nor a folder written by save_to_disk")
    names = [name for _, name in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--input: two files are called {twice!r}, so their rows could not be told apart; rename one")
    return found


def _saved_files(folder: Path) -> list[str]:
    """The arrow files of a saved data set, in order."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'}: does not list the files of a saved data set ({error})") from None


def pair_from_row(row: Mapping[str, Any], document_id: str) -> PreferencePair:
    """Turn a row into a pair: spans are the runs of labels that are not masked, padding goes by the attention mask.

    Args:
        row: an Arrow list of integers for each long column, a list of lists for each ``ref_`` column.
        document_id: ``name:row``.

    Raises:
        UserError: a field is no list of integers, or fields that belong together differ in length.
        DroppedError: labels are unusable, or the sides are identical.
    """
    sides = {}
    for name in ("chosen", "rejected"):
        kept, ids, labels = _unpadded(row, name, document_id)
        sides[name] = _side(ids, labels)
        if name == "chosen":
            lm_labels = _integers(row["chosen_lm_labels"], f"{document_id}: chosen_lm_labels")
            if len(lm_labels) != len(kept):
                raise UserError(f"{document_id}: chosen_lm_labels has {len(lm_labels)} entries, its ids {len(kept)}")
            content = _runs(lm_labels[kept])
    short = {name: _short_sides(row, name, document_id) for name in ("chosen", "rejected")}
    counts = {
        len(sides["chosen"].answer_spans),
        len(sides["rejected"].answer_spans),
        len(short["chosen"]),
        len(short["rejected"]),
    }
    if len(counts) != 1 or any(len(side.answer_spans) != 1 for side in (*short["chosen"], *short["rejected"])):
        raise DroppedError(DropReason.LABELS_UNUSABLE)
    if np.array_equal(sides["chosen"].input_ids, sides["rejected"].input_ids):
        raise DroppedError(DropReason.IDENTICAL_SIDES)
    return PreferencePair(document_id, sides["chosen"], sides["rejected"], content, short["chosen"], short["rejected"])


def _short_sides(row: Mapping[str, Any], name: str, document_id: str) -> tuple[Side, ...]:
    columns = [f"ref_{name}_{kind}" for kind in ("input_ids", "attention_mask", "labels")]
    turns = {}
    for column in columns:
        values = row[column].values
        if values is None or not hasattr(values, "values"):
            raise UserError(f"{document_id}: {column}: expected a list with a list of integers for each turn")
        turns[column] = values
    if len({len(values) for values in turns.values()}) != 1:
        raise UserError(f"{document_id}: ref_{name}_*: the fields have different numbers of turns")
    sides = []
    for turn in range(len(turns[columns[0]])):
        entry = {column: turns[column][turn] for column in columns}
        _, ids, labels = _unpadded(entry, f"ref_{name}", document_id)
        sides.append(_side(ids, labels))
    return tuple(sides)


def _unpadded(row: Mapping[str, Any], name: str, document_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entries the attention mask keeps, bool ``[padded]``; the ids and labels there."""
    ids, mask, labels = (
        _integers(row[f"{name}_{kind}"], f"{document_id}: {name}_{kind}") for kind in ("input_ids", "attention_mask", "labels")
    )
    if not len(ids) == len(mask) == len(labels):
        raise UserError(f"{document_id}: {name}_*: ids, mask and labels have {len(ids)}, {len(mask)} and {len(labels)} entries")
    kept = mask == 1
    if len(ids) and not 0 <= ids.min() <= ids.max() < 2**31:
        raise UserError(f"{document_id}: {name}_input_ids: ids must be in [0, 2**31)")
    return kept, ids[kept].astype(np.int32), labels[kept]


def _side(ids: np.ndarray, labels: np.ndarray) -> Side:
    labelled = labels != IGNORE_INDEX
    if not labelled.any() or labelled[0] or (labels[labelled] != ids[labelled]).any():
        raise DroppedError(DropReason.LABELS_UNUSABLE)
    return Side(ids, _runs(labels))


def _runs(labels: np.ndarray) -> tuple[Span, ...]:
    """Maximal stretches of labels that are not masked."""
    labelled = np.concatenate([[False], labels != IGNORE_INDEX, [False]])
    edges = np.flatnonzero(labelled[1:] != labelled[:-1]).reshape(-1, 2)
    return tuple((int(start), int(end)) for start, end in edges)


def _integers(value: Any, where: str) -> np.ndarray:
    import pyarrow

    values = value.values
    if values is None or not pyarrow.types.is_integer(values.type) or values.null_count:
        raise UserError(f"{where}: expected a list of integers")
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)


def _check_vocabulary(pair: PreferencePair, vocab_size: int) -> None:
    largest = max(int(side.input_ids.max()) for side in (pair.chosen, pair.rejected, *pair.short_chosen, *pair.short_rejected))
    if largest >= vocab_size:
        raise UserError(
            f"{pair.document_id}: holds id {largest}, the tokenizer has {vocab_size}; give the tokenizer that made the data"
        )
