"""Valid lines of JSON made into others in all the ways that files go wrong: by accident of disks, editors and scripts."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 10**400, "", " \n", [], {}, [[]], {"a": {}}, "\ud800", "\x00", "<|im_end|>", "a" * 30_000, "\ufeff",
)  # fmt: skip
TOKENS = ("NaN", "-Infinity", "1e999", "0x1", "9" * 5000, "tru", "[" * 5000, '{"a":' * 500, "'a'", '"\\ud800"', '"\\x41"')
BYTES = (b"\r", b"\x00" * 9, b"\xf0\x9f", b"\xed\xa0\x80")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*path, key)
        yield from places(child, (*path, key))


def _at_random_place(rng: random.Random, record: dict[str, Any], change: Callable[[Any, Any], None]) -> bytes:
    changed = copy.deepcopy(record)
    *path, key = rng.choice(list(places(changed)))
    parent = changed
    for step in path:
        parent = parent[step]
    change(parent, key)
    return json.dumps(changed).encode()


def _replace(rng: random.Random, record: dict[str, Any]) -> bytes:
    return _at_random_place(rng, record, lambda parent, key: parent.__setitem__(key, rng.choice(VALUES)))


def _remove(rng: random.Random, record: dict[str, Any]) -> bytes:
    return _at_random_place(rng, record, lambda parent, key: parent.__delitem__(key))


def _add(rng: random.Random, record: dict[str, Any]) -> bytes:
    def change(parent: Any, _: Any) -> None:
        if isinstance(parent, dict):
            parent[rng.choice(("chosen", "Turns", "metadata", ""))] = rng.choice(VALUES)
        else:
            parent.insert(rng.randint(0, len(parent)), rng.choice(VALUES))

    return _at_random_place(rng, record, change)


def _wrap(rng: random.Random, record: dict[str, Any]) -> bytes:
    def change(parent: Any, key: Any) -> None:
        for _ in range(rng.choice((1, 3, 70, 300))):
            parent[key] = [parent[key]] if rng.random() < 0.5 else {"a": parent[key]}

    return _at_random_place(rng, record, change)


def _put_token(rng: random.Random, record: dict[str, Any]) -> bytes:
    marked = _at_random_place(rng, record, lambda parent, key: parent.__setitem__(key, "MARK"))
    return marked.replace(b'"MARK"', rng.choice(TOKENS).encode())


def _repeat_field(rng: random.Random, record: dict[str, Any]) -> bytes:
    name = rng.choice(list(record))
    return json.dumps(record).encode()[:-1] + f", {json.dumps(name)}: {json.dumps(record[name])}}}".encode()


def _flip(rng: random.Random, record: dict[str, Any]) -> bytes:
    line = bytearray(json.dumps(record, ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.choice((1, 1, 1, 5, 50))):
        line[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
    return bytes(line)


def _splice(rng: random.Random, record: dict[str, Any]) -> bytes:
    line = json.dumps(record, ensure_ascii=False).encode()
    start, end = sorted(rng.randrange(len(line) + 1) for _ in range(2))
    middle = rng.choice((b"", line[start:end] * 2, rng.randbytes(rng.randrange(1, 9)), *BYTES))
    return line[:start] + middle + line[end:]


def _truncate(rng: random.Random, record: dict[str, Any]) -> bytes:
    line = json.dumps(record).encode()
    return line[: rng.randrange(len(line))]


def _other_file(rng: random.Random, record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False)
    texts = (f"{text}{text}", f"[{text}]", f"{text},", f"{text}\r", json.dumps(text))
    encodings = (text.encode("utf-16"), text.encode("utf-8-sig"), text.encode("latin-1", "replace"))
    return rng.choice((*map(str.encode, texts), *encodings, b"\x1f\x8b" + text.encode(), b"\x00" * 5000))


KINDS = (_replace, _remove, _add, _wrap, _put_token, _repeat_field, _flip, _splice, _truncate, _other_file)


def mutate(rng: random.Random, record: dict[str, Any]) -> bytes:
    """A line made of a record and spoilt in one of many ways; now and then it is a record again. It holds no line end."""
    return rng.choice(KINDS)(rng, record).replace(b"\n", b" ")
