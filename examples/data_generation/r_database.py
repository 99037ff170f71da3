"""Read texts out of an R lazy-load database, the form in which R packages carry their data, without R.

`NAME.rdx` is the index: a gzipped R value, a list of ``variables`` (name -> offset and length in bytes), ``references`` and
``compressed``. `NAME.rdb` holds each value behind a 4-byte length. A value is in R's binary form ("R Internals", section 1.8):
big-endian, each item led by a word of type and flags. Only what lists and vectors of texts and integers need is understood, and
anything else is refused.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_longpo.utils.errors import UserError

SYMBOL, PAIRLIST, TEXT, LOGICALS, INTEGERS, TEXTS, LIST = 1, 2, 9, 10, 13, 16, 19
NULL, REFERENCE = 254, 255
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400
BYTES, LATIN1 = 0x2000, 0x4000
"""Flags of a text. One with neither is UTF-8: it says so, or is ASCII, or is in the native encoding that the header names."""
NATIVE = b"UTF-8"
ZLIB = 1
"""What ``compressed`` says where values are compressed as R does by default."""

Value = None | list[int] | list[str | None] | list["Value"] | dict[str, "Value"]


class FormatError(Exception):
    """The bytes are not what this module reads."""


def read_texts(database: Path) -> dict[str, list[str]]:
    """Read a database in which every value is a vector of texts.

    Args:
        database: path of its two files, without ``.rdx`` and ``.rdb``.

    Returns:
        The texts of each value, by name.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    index_path, values_path = database.with_name(database.name + ".rdx"), database.with_name(database.name + ".rdb")
    path = index_path
    try:
        places = _read_index(index_path.read_bytes())
        path = values_path
        content = values_path.read_bytes()
        return {name: _read_value(content, name, place) for name, place in places.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); is it an R database?") from None
    except FormatError as error:
        raise UserError(f"{path}: {error}; only an R database of texts can be read") from None


def parse_value(data: bytes) -> Value:
    """Parse one serialised value, with nothing behind it.

    Returns:
        Vectors of texts and integers as lists, NA as None; a list as a list, and as a dictionary if its elements have names.

    Raises:
        FormatError: the bytes are something else.
    """
    return _Reader(data).read_all()


def _read_index(data: bytes) -> Mapping[str, Sequence[int]]:
    try:
        index = parse_value(gzip.decompress(data))
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"no gzipped index ({error})") from None
    if not isinstance(index, dict) or not isinstance(index.get("variables"), dict):
        raise FormatError("an index without a list of variables")
    if index.get("compressed") != [ZLIB]:
        raise FormatError(f"values are not compressed by zlib (compressed: {index.get('compressed')})")
    places: dict[str, Sequence[int]] = {}
    for name, place in index["variables"].items():
        if not isinstance(place, list) or len(place) != 2 or not all(isinstance(number, int) for number in place):
            raise FormatError(f"variable {name!r} has no offset and length in the index")
        places[name] = place
    return places


def _read_value(content: bytes, name: str, place: Sequence[int]) -> list[str]:
    offset, length = place
    if offset < 0 or length < 4 or offset + length > len(content):
        raise FormatError(f"variable {name!r} at byte {offset} ends beyond the file; it is cut off or of another index")
    try:
        data = zlib.decompress(content[offset + 4 : offset + length])
    except zlib.error as error:
        raise FormatError(f"variable {name!r} at byte {offset} cannot be decompressed ({error})") from None
    if len(data) != int.from_bytes(content[offset : offset + 4]):
        raise FormatError(f"variable {name!r} at byte {offset} has not the length that it says")
    value = parse_value(data)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise FormatError(f"variable {name!r} is no vector of texts without NA")
    return value


class _Reader:
    """Reads items one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0
        self._symbols: list[str] = []

    def read_all(self) -> Value:
        if self._take(2) != b"X\n":
            raise FormatError("no R value in binary form")
        version, _, _ = (self._integer() for _ in range(3))
        if version not in (2, 3):
            raise FormatError(f"an R value of version {version}, not 2 or 3")
        if version == 3 and (encoding := self._take(self._integer())) != NATIVE:
            raise FormatError(f"texts in {encoding!r}, not in UTF-8")
        try:
            value = self._item()
        except RecursionError:
            raise FormatError("lists nested too deeply") from None
        if self._place != len(self._data):
            raise FormatError(f"{len(self._data) - self._place} bytes behind an R value")
        return value

    def _take(self, length: int) -> bytes:
        if not 0 <= length <= len(self._data) - self._place:
            raise FormatError(f"an R value that is cut off at byte {self._place}")
        self._place += length
        return self._data[self._place - length : self._place]

    def _integer(self) -> int:
        return int.from_bytes(self._take(4), signed=True)

    def _item(self) -> Value:
        flags = self._integer()
        kind = flags & 0xFF
        if kind == NULL:
            return None
        if kind not in (LOGICALS, INTEGERS, TEXTS, LIST):
            raise FormatError(f"an R value of type {kind} at byte {self._place - 4}")
        value = self._vector(kind)
        attributes = self._attributes(self._integer()) if flags & HAS_ATTRIBUTES else {}
        names = attributes.get("names")
        if kind != LIST or names is None:
            return value
        if not isinstance(names, list) or len(names) != len(value) or len(set(names)) != len(names) or None in names:
            raise FormatError("a list whose names are not one for each element")
        return dict(zip(names, value, strict=True))

    def _vector(self, kind: int) -> list[int] | list[str | None] | list[Value]:
        length = self._integer()
        if length < 0:  # how vectors of 2^31 elements and more begin
            raise FormatError(f"a vector of more elements than can be read at byte {self._place - 4}")
        if kind in (LOGICALS, INTEGERS):
            return list(struct.unpack(f">{length}i", self._take(4 * length)))
        if kind == LIST:
            return [self._item() for _ in range(length)]
        return [self._text(self._integer()) for _ in range(length)]

    def _text(self, flags: int) -> str | None:
        if flags & 0xFF != TEXT or flags & BYTES:
            raise FormatError(f"no text at byte {self._place - 4}")
        length = self._integer()
        if length == -1:  # NA
            return None
        raw = self._take(length)
        try:
            return raw.decode("latin-1" if flags & LATIN1 else "utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"a text before byte {self._place} that is not UTF-8") from None

    def _attributes(self, flags: int) -> dict[str, Value]:
        """Read a pairlist: tagged values up to a null."""
        attributes = {}
        while flags & 0xFF != NULL:
            if flags & 0xFF != PAIRLIST or flags & HAS_ATTRIBUTES or not flags & HAS_TAG:
                raise FormatError(f"no attributes at byte {self._place - 4}")
            name = self._symbol(self._integer())
            attributes[name] = self._item()
            flags = self._integer()
        return attributes

    def _symbol(self, flags: int) -> str:
        if flags & 0xFF == REFERENCE and 0 < flags >> 8 <= len(self._symbols):
            return self._symbols[(flags >> 8) - 1]
        if flags & 0xFF != SYMBOL:
            raise FormatError(f"no name of an attribute at byte {self._place - 4}")
        name = self._text(self._integer())
        if name is None:
            raise FormatError(f"an attribute whose name is NA before byte {self._place}")
        self._symbols.append(name)
        return name
