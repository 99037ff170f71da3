"""Preference records in text: JSON Lines, one document with its turns a line."""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.json_lines import LineError, kind_of, unique_fields

RECORD_FIELDS = ("document_id", "long_context", "turns", "metadata")
TURN_FIELDS = ("short_context", "instruction", "chosen", "rejected")
MAX_NESTING = 64
"""Levels of objects and lists in a record. Python's own limit depends on where it is asked, so two readings could differ."""
MAX_ID_LENGTH = 4096
"""Characters of a document's id: it is written into the dataset, and into messages."""


class RecordError(LineError):
    """A line that is no record. The message is ``field: what and cure``, on one line."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question on the document.

    Attributes:
        short_context: the part of the document that the chosen answer was written from.
        instruction: the question, with any lead-in phrase.
        chosen: the answer given on the short context.
        rejected: the answer given on the long context.
    """

    short_context: str
    instruction: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class PreferenceRecord:
    """A document, its turns, and whatever its maker wants to remember about it.

    Attributes:
        document_id: unique in the data set.
        long_context: the whole document.
        turns: at least one.
        metadata: free, except that ``metadata["turns"][i]["finish_reason_chosen"]`` and ``["finish_reason_rejected"]`` tell
            how the answers of turn ``i`` ended; ``"length"`` means cut off by the generation limit.
    """

    document_id: str
    long_context: str
    turns: tuple[Turn, ...]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def is_cut_off(self) -> bool:
        """Whether the generation limit cut any answer."""
        reasons = ("finish_reason_chosen", "finish_reason_rejected")
        return any(turn.get(reason) == "length" for turn in self.metadata.get("turns", ()) for reason in reasons)

    def to_json(self) -> str:
        """The record as one line, without the line end."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def parse_record(line: bytes | str, where: str) -> PreferenceRecord:
    """Read one line.

    Args:
        line: JSON, UTF-8.
        where: ``file:line``, for the errors.

    Raises:
        UserError: the line is not such a record; the message is ``file:line: field: what and cure``.
    """
    try:
        return read_record(line)
    except RecordError as error:
        raise UserError(f"{where}: {error}") from None


def read_record(line: bytes | str) -> PreferenceRecord:
    """Read one line.

    Args:
        line: JSON, UTF-8.

    Raises:
        RecordError: the line is not such a record.
    """
    try:
        text = line if isinstance(line, str) else line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise RecordError(f"not a JSON object in UTF-8 ({reason}); write one record a line") from None
    fields = _object(value, "the record", RECORD_FIELDS, optional=("metadata",))
    document_id = _text(fields["document_id"], "document_id")
    turns = fields["turns"]
    if not document_id:
        raise RecordError("document_id: is empty; give each document a unique id")
    if len(document_id) > MAX_ID_LENGTH:
        raise RecordError(f"document_id: has {len(document_id)} characters; give each document an id of up to {MAX_ID_LENGTH}")
    if not isinstance(turns, list) or not turns:
        raise RecordError(f"turns: expected a list of at least one turn, found {kind_of(turns)}")
    return PreferenceRecord(
        document_id=document_id,
        long_context=_text(fields["long_context"], "long_context"),
        turns=tuple(_turn(turn, f"turns[{i}]") for i, turn in enumerate(turns)),
        metadata=_metadata(fields.get("metadata", {}), len(turns)),
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields, parse_constant=_no_constant)


def _turn(value: object, where: str) -> Turn:
    fields = _object(value, where, TURN_FIELDS)
    return Turn(**{name: _text(fields[name], f"{where}.{name}") for name in TURN_FIELDS})


def _metadata(value: object, num_turns: int) -> dict[str, Any]:
    """Free-form, but what preprocessing reads from it must have the shape it expects."""
    if not isinstance(value, dict):
        raise RecordError(f"metadata: expected an object, found {kind_of(value)}")
    turns = value.get("turns", [{}] * num_turns)
    if not isinstance(turns, list) or len(turns) != num_turns or not all(isinstance(turn, dict) for turn in turns):
        raise RecordError(f"metadata.turns: expected a list of {num_turns} objects, one for each of the record's turns")
    layer: list[Any] = [value]
    for _ in range(MAX_NESTING):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return value
    raise RecordError(f"metadata: is nested more than {MAX_NESTING} levels deep; flatten it")


def _inside(value: object) -> list[Any]:
    """What an object or a list holds."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _object(value: object, where: str, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected an object with the fields {', '.join(names)}; found {kind_of(value)}")
    for name in names:
        if name not in value and name not in optional:
            raise RecordError(f"{where}: the field {name!r} is missing")
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise RecordError(f"{where}: unknown field {unknown[0]!r}; fields of your own belong under metadata")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{where}: expected a string, found {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError(f"{where}: holds half of a surrogate pair, which no tokenizer can encode; repair the text") from None
    return value
