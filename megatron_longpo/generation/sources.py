"""Records out of files, folders and Hugging Face datasets: one at a time, in order, before anyone has looked at what they say.

What can be read:

- JSON Lines, also compressed (``.gz``, ``.zst``);
- a Parquet file (``.parquet``);
- a text file (the suffixes of `chunkers.SUFFIX_DOMAINS`), which is one document;
- a folder: what ``Dataset.save_to_disk`` wrote; else the rows of its Parquet files; else the lines of its JSON Lines files; else
  its text files. Folders in it count, names that begin with a dot do not, and the order is that of the names;
- ``hf:NAME[:CONFIG]``: a dataset of the hub, or a folder that ``datasets.load_dataset`` understands, streamed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.generation.chunkers import SUFFIX_DOMAINS
from megatron_longpo.utils.errors import UserError

HUGGING_FACE = "hf:"
LINES_NAME = re.compile(r".+\.(jsonl|ndjson)|.+\.(jsonl|ndjson|json)\.(gz|zst)", re.IGNORECASE)
"""JSON Lines in a folder, where a plain ``.json`` is some configuration. A file that is given alone may have any name."""

MAX_LINE_BYTES = 2**30
"""A longer line is no document: without a bound, a file of something else would be read into memory as one line."""

ROWS_PER_BATCH = 4
"""Rows of a Parquet file that are decoded together; a row is a long document. A row group's dictionary is held beside them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A record of a source, not checked.

    Attributes:
        where: file and line or row, for messages.
        name: file and number of the line or row, from 1: an id for a record that has none.
        columns: names of all that the record has.
        values: at least those that were asked for, where there are any.
        domain: what the file's suffix says about a text; None for other sources.
    """

    where: str
    name: str
    columns: Sequence[str]
    values: Mapping[str, Any]
    domain: str | None = None


def read_records(source: str, split: str, wanted: Collection[str]) -> Iterator[Record]:
    """Read the records of a source.

    Args:
        source: a path, or ``hf:NAME[:CONFIG]``.
        split: split of a Hugging Face dataset.
        wanted: columns to read; sources that can leave the others unread do.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    if source.startswith(HUGGING_FACE):
        return _read_hub(source.removeprefix(HUGGING_FACE), split, wanted)
    path = Path(source)
    with _readable(path):
        exists = path.exists()
    if not exists:
        raise UserError(
            f"{source}: no such file or folder; give JSON Lines, Parquet, a folder of text files or, for a Hugging Face dataset, "
            f"{HUGGING_FACE}NAME"
        )
    if path.is_dir():
        return _read_folder(path, split, wanted)
    return _read_files([(path, path.name)], wanted)


def _read_folder(folder: Path, split: str, wanted: Collection[str]) -> Iterator[Record]:
    if any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return _read_saved(folder, split, wanted)
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    for kind in ("parquet", "lines"):
        if found := [(folder / name, name) for name in names if _kind(name) == kind]:
            return _read_files(found, wanted)
    texts = [name for name in names if _kind(name) == "text"]
    if not texts:
        suffixes = " ".join(sorted(SUFFIX_DOMAINS))
        raise UserError(f"{folder}: no documents in it; expected Parquet, JSON Lines, or text files named {suffixes}")
    return (_read_text(folder / name, shown) for name, shown in zip(texts, _without_suffix(texts), strict=True))


def _kind(name: str) -> str:
    if name.lower().endswith(".parquet"):
        return "parquet"
    if LINES_NAME.fullmatch(name):
        return "lines"
    return "text" if Path(name).suffix.lower() in SUFFIX_DOMAINS else "other"


def _without_suffix(names: Sequence[str]) -> list[str]:
    """Shorten the names of files to ids: without the suffix, unless that would be another's id or name."""
    short = [name.removesuffix(Path(name).suffix) for name in names]
    taken = collections.Counter(short)
    full = set(names)
    return [stem if taken[stem] == 1 and stem not in full else name for stem, name in zip(short, names, strict=True)]


def _read_files(files: Iterable[tuple[Path, str]], wanted: Collection[str]) -> Iterator[Record]:
    for path, name in files:
        kind = _kind(name)
        if kind == "parquet":
            yield from _read_parquet(path, name, wanted)
        elif kind == "text":
            yield _read_text(path, Path(name).stem)
        else:
            yield from _read_lines(path, name)


def _read_text(path: Path, name: str) -> Record:
    """Read a file that is one document; a byte-order mark is left out, line ends stay as they are."""
    with _readable(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it, for example with iconv") from None
    values = {"document_id": name, "text": text}
    return Record(where=str(path), name=name, columns=list(values), values=values, domain=SUFFIX_DOMAINS[path.suffix.lower()])


def _read_lines(path: Path, name: str) -> Iterator[Record]:
    """Read JSON Lines; a compressed file is recognised by its suffix, and never held as a whole."""
    import pyarrow

    with _readable(path), pyarrow.input_stream(str(path)) as stream:
        lines = io.BufferedReader(stream, buffer_size=2**20)
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{where}: longer than {MAX_LINE_BYTES} bytes; is it JSON Lines, one document a line?")
            if line.strip():
                record = _parse_line(where, line)
                yield Record(where=where, name=f"{name}:{number}", columns=list(record), values=record)


def _parse_line(where: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start} of the line); convert the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line is expected") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"
        raise UserError(f"{where}: JSON that cannot be read ({reason}); leave that out") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: not an object but {_name_type(record)}; one object a line is expected, with the text in it")
    return record


def _name_type(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _read_parquet(path: Path, name: str, wanted: Collection[str]) -> Iterator[Record]:
    import pyarrow.parquet

    with _readable(path), pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
        columns = file.schema_arrow.names
        batches = file.iter_batches(ROWS_PER_BATCH, columns=[column for column in columns if column in wanted], use_threads=False)
        yield from _rows(str(path), name, columns, batches, wanted)


def _read_saved(folder: Path, split: str, wanted: Collection[str]) -> Iterator[Record]:
    """Read what ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote: Arrow streams, mapped into memory."""
    import pyarrow

    name = folder.resolve().name
    if (folder / "dataset_dict.json").exists():
        splits = _read_list(folder / "dataset_dict.json", "splits")
        if split not in splits:
            raise UserError(f"{folder}: no split {split!r}; there are: {', '.join(map(str, splits))} (--input-split)")
        folder = folder / split
    number = 0
    for entry in _read_list(folder / "state.json", "_data_files"):
        path = folder / str(entry.get("filename") if isinstance(entry, dict) else entry)
        with _readable(path), pyarrow.memory_map(str(path)) as memory, pyarrow.ipc.open_stream(memory) as stream:
            for record in _rows(str(path), name, stream.schema.names, stream, wanted, number):
                yield record
                number += 1


def _read_list(path: Path, field: str) -> list[Any]:
    try:
        found = json.loads(path.read_bytes())[field]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, list):
        raise UserError(f"{path}: not as Dataset.save_to_disk writes it (no list {field!r}); save the dataset again")
    return found


def _rows(
    shown: str, name: str, columns: Sequence[str], batches: Iterable[Any], wanted: Collection[str], done: int = 0
) -> Iterator[Record]:
    """Give the rows of Arrow batches; ``done`` rows of other files of the same dataset came before."""
    row = 0
    for batch in batches:
        for number in range(batch.num_rows):
            row += 1
            where = f"{shown}: row {row}"
            values = {column: _value(where, batch, column, number) for column in batch.schema.names if column in wanted}
            yield Record(where=where, name=f"{name}:{done + row}", columns=columns, values=values)


def _value(where: str, batch: Any, column: str, number: int) -> Any:
    try:
        return batch.column(column)[number].as_py()
    except (ValueError, OverflowError, KeyError) as error:  # not UTF-8, not a date of Python's, a name twice
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).splitlines()[0]
        raise UserError(f'{where}: "{column}" cannot be read ({reason}); mend or drop the row') from None


def _read_hub(name: str, split: str, wanted: Collection[str]) -> Iterator[Record]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{HUGGING_FACE}{name}: needs the package datasets; pip install datasets") from None
    path, _, config = name.partition(":")
    shown = f"{HUGGING_FACE}{name}"
    with _reachable(shown):
        dataset = datasets.load_dataset(path, config or None, split=split, streaming=True)
        columns = dataset.column_names
        if columns:
            dataset = dataset.select_columns([column for column in columns if column in wanted])
        rows = iter(dataset)
    number = 0
    while True:
        with _reachable(shown, number):
            row = next(rows, None)
        if row is None:
            return
        number += 1
        yield Record(where=f"{shown}: row {number}", name=f"{name}:{number}", columns=columns or list(row), values=row)


@contextlib.contextmanager
def _reachable(shown: str, rows: int = 0) -> Iterator[None]:
    """Make one line of whatever the hub, the network or a file of the dataset does not do: the library raises all kinds."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        after = f" after row {rows}" if rows else ""
        raise UserError(
            f"{shown}: cannot be read{after} ({reason}); check the name, the configuration, --input-split and the way to the hub"
        ) from None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read ({reason}); is it whole, and what its name says?") from None
