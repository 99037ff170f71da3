"""Documents that pairs are made from, and where they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from megatron_longpo.generation.chunkers import CHUNKERS
from megatron_longpo.generation.sources import Record, read_records
from megatron_longpo.utils.errors import UserError

ID_COLUMNS = ("document_id", "id")
"""Where a document's id is looked for if no column is named."""

MAX_ID_LENGTH = 4096
"""As preprocessing has it."""
METADATA_COLUMN = "metadata"
AUTO_DOMAIN = "auto"
"""The domain that a text file's suffix stands for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenQuestion:
    """A question that comes with the document.

    Attributes:
        text: the question.
        start: first character of the document that it is about.
        end: one past the last.
    """

    text: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One document.

    Attributes:
        document_id: unique among the documents of a source.
        text: the text, exactly as it was read.
        metadata: whatever its maker wants to keep beside the pairs, as JSON values.
        domain: how it is cut, a key of `chunkers.CHUNKERS`.
        questions: questions that came with it.
    """

    document_id: str
    text: str
    metadata: dict[str, Any]
    domain: str
    questions: tuple[GivenQuestion, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSource:
    """Where documents come from.

    A ``metadata`` column that is an object is kept; columns that are not named are ignored.

    Attributes:
        path: a file, a folder, or ``hf:NAME[:CONFIG]``; `generation.sources` says what can be read.
        text_column: column of the text.
        id_column: column of the id, a string or an integer. None takes ``document_id`` or ``id`` where a record has one, else
            the file's name and the number of the line or row.
        domain: domain of a document without a value in ``domain_column``; ``auto`` goes by the suffixes of text files.
        domain_column: column of the domain, in capitals or not; null stands for ``domain``.
        question_column: column of the questions, a list of ``{"question": str, "start": int, "end": int}``; null stands for none.
        split: split of a Hugging Face dataset.
    """

    path: str
    text_column: str = "text"
    id_column: str | None = None
    domain: str = "text"
    domain_column: str | None = None
    question_column: str | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        """Refuse a domain that there is no chunker for.

        Raises:
            UserError: the domain is unknown.
        """
        if self.domain != AUTO_DOMAIN and self.domain not in CHUNKERS:
            raise UserError(f"--domain {self.domain}: unknown; there are: {', '.join((*CHUNKERS, AUTO_DOMAIN))}")

    def read(self) -> Iterator[Document]:
        """Read the documents one at a time, in the order of the source; of those before, only a hash of each id is kept.

        Raises:
            UserError: the source holds no documents, a record is not a document, or an id occurs twice.
        """
        ids = ID_COLUMNS if self.id_column is None else (self.id_column,)
        others = (column for column in (self.domain_column, self.question_column) if column is not None)
        wanted = {self.text_column, METADATA_COLUMN, *ids, *others}
        seen: dict[bytes, int] = {}
        for number, record in enumerate(read_records(self.path, self.split, wanted), start=1):
            document = self._parse(record)
            digest = hashlib.blake2b(document.document_id.encode(), digest_size=16).digest()
            first = seen.setdefault(digest, number)
            if first != number:
                raise UserError(
                    f"{record.where}: the id {document.document_id!r} is that of document {first} too; make ids unique, or name "
                    f"another column with --id-column"
                )
            if len(document.document_id) > MAX_ID_LENGTH:
                raise UserError(f"{record.where}: the id has {len(document.document_id)} characters, {MAX_ID_LENGTH} are allowed")
            yield document
        if not seen:
            raise UserError(f"{self.path}: no documents in it; it has no records")

    def _parse(self, record: Record) -> Document:
        text = _get_string(record, self.text_column, "--text-column")
        return Document(
            document_id=self._id(record),
            text=text,
            metadata=_get_metadata(record),
            domain=self._domain(record),
            questions=tuple(self._questions(record, len(text))),
        )

    def _id(self, record: Record) -> str:
        """Return the id of a record, which is its place where it has none."""
        column = self.id_column
        if column is None:
            column = next((name for name in ID_COLUMNS if record.values.get(name) is not None), None)
        if column is None:
            _check_unicode(record.where, "file name", record.name)
            return record.name
        value = _get(record, column, "--id-column")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text = _get_string(record, column, "--id-column")
        if not text.strip():
            raise UserError(
                f'{record.where}: "{column}" is blank; give each document an id, or name another column with --id-column'
            )
        return text

    def _domain(self, record: Record) -> str:
        value = None if self.domain_column is None else _get(record, self.domain_column, "--domain-column")
        if value is None:
            domain = record.domain if self.domain == AUTO_DOMAIN else self.domain
            if domain is None:
                raise UserError(
                    f"{record.where}: --domain auto goes by the suffixes of text files, and this is none; name a domain"
                )
            return domain
        if not isinstance(value, str) or value.lower() not in CHUNKERS:
            raise UserError(f'{record.where}: "{self.domain_column}" is {value!r:.80}; domains are: {", ".join(CHUNKERS)}')
        return value.lower()

    def _questions(self, record: Record, length: int) -> Iterator[GivenQuestion]:
        if self.question_column is None:
            return
        found = _get(record, self.question_column, "--question-column")
        if not isinstance(found, list | None):
            raise UserError(f'{record.where}: "{self.question_column}" must be a list of {{"question", "start", "end"}}, or null')
        for number, entry in enumerate(found or ()):
            yield _parse_question(f'{record.where}: "{self.question_column}"[{number}]', entry, length)


def _parse_question(where: str, entry: Any, length: int) -> GivenQuestion:
    if not isinstance(entry, dict):
        raise UserError(f'{where}: must be an object {{"question": str, "start": int, "end": int}}')
    text = entry.get("question")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: "question" must be a string that is not blank')
    _check_unicode(where, "question", text)
    start, end = (_get_offset(where, entry, field) for field in ("start", "end"))
    if not 0 <= start < end <= length:
        raise UserError(f"{where}: characters {start} to {end} are not a part of the text, which has {length}; mend the offsets")
    return GivenQuestion(text=text, start=start, end=end)


def _get_offset(where: str, entry: dict[str, Any], field: str) -> int:
    value = entry.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f'{where}: "{field}" must be an integer, a character of the text')
    return value


def _get(record: Record, column: str, option: str) -> Any:
    if column not in record.columns:
        there = ", ".join(map(str, record.columns)) or "none"
        raise UserError(f'{record.where}: no column "{column}"; there are: {there} (name one with {option}; null is a value)')
    return record.values[column]


def _get_string(record: Record, column: str, option: str) -> str:
    value = _get(record, column, option)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise UserError(f'{record.where}: "{column}" must be a string, not {kind}; mend or drop the record, or see {option}')
    _check_unicode(record.where, column, value)
    return value


def _check_unicode(where: str, field: str, text: str) -> None:
    """Refuse half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f'{where}: "{field}" has half a surrogate pair (character {error.start}); mend the \\u escape') from None


def _get_metadata(record: Record) -> dict[str, Any]:
    """Return the metadata as JSON values.

    Raises:
        UserError: something in it cannot be written as JSON, such as a date or an infinite number.
    """
    value = record.values.get(METADATA_COLUMN)
    if not isinstance(value, dict):
        return {}
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise UserError(f'{record.where}: "{METADATA_COLUMN}" has half a surrogate pair; mend the \\u escape') from None
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{record.where}: "{METADATA_COLUMN}" is not JSON ({error}); write it as a string, or drop it') from None
    return value
