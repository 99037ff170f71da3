"""A user's own questions with their right answers: JSON Lines, one question a line."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.scoring import Score, equals_any, holds_all, word_f1
from megatron_longpo.inference.messages import join_message
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.json_lines import LineError, kind_of, unique_fields

FIELDS = ("context", "question", "answers", "group", "id", "metadata")


@dataclasses.dataclass(frozen=True)
class Metric:
    """How an answer is scored; ``title`` says it in words."""

    title: str
    score: Score


METRICS: Mapping[str, Metric] = {
    "contains": Metric("share of the right answers that occur in the answer", holds_all),
    "exact": Metric("the whole answer is a right one", equals_any),
    "f1": Metric("F1 of words", word_f1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnQuestion:
    """A question.

    Attributes:
        index: its line, from 0.
        context: the text that it is about; may be empty.
        text: what is asked.
        answers: right ones.
        group: whose scores it counts in, next to the file's; None: no other.
        id: the user's name for it.
    """

    index: int
    context: str
    text: str
    answers: tuple[str, ...]
    group: str | None = None
    id: str | int | None = None

    @property
    def message(self) -> str:
        """The user message: put together as in the pairs."""
        return join_message(self.context, self.text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """A file; ``name`` is what it is called in the results."""

    name: str
    sha256: str
    questions: tuple[OwnQuestion, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """A file's questions as they are asked.

    Attributes:
        file: the questions.
        metric: a key of `METRICS`.
        answer_tokens: most tokens of an answer.
    """

    file: QuestionFile
    metric: str
    answer_tokens: int

    def describe(self) -> dict[str, Any]:
        """Return the settings that its results depend on."""
        return {"sha256": self.file.sha256, "metric": self.metric, "answer_tokens": self.answer_tokens}


class QuestionError(LineError):
    """A line that is no question. The message is ``field: what and cure``, on one line."""


def load_questions(name: str, path: Path, limit: int | None = None, *, flag: str = "--questions ") -> QuestionFile:
    """Read a file, its first ``limit`` questions. Blank lines are passed over; equal contexts are held once.

    Args:
        name: what it is called in the results.
        path: JSON Lines.
        limit: most questions; None: all.
        flag: what stands before the path on the command line.

    Raises:
        UserError: the file cannot be read, or holds a line that is no question, or none.
    """
    digest = hashlib.sha256()
    questions: list[OwnQuestion] = []
    contexts: dict[str, str] = {}
    try:
        with path.open("rb") as lines:
            for index, line in enumerate(lines):
                if limit is not None and len(questions) >= limit:
                    break
                digest.update(line)
                if line.strip():
                    question = read_question(line, index)
                    context = contexts.setdefault(question.context, question.context)
                    questions.append(dataclasses.replace(question, context=context))
    except OSError as error:
        raise UserError(f"{flag}{path}: {error.strerror}; give a JSON Lines file") from None
    except QuestionError as error:
        raise UserError(f"{path}:{index + 1}: {error}") from None
    if not questions:
        raise UserError(f'{path}: holds no question; write one JSON object a line, with "question" and "answers"')
    return QuestionFile(name=name, sha256=digest.hexdigest(), questions=tuple(questions))


def read_question(line: bytes, index: int) -> OwnQuestion:
    """Read one line.

    Args:
        line: JSON, UTF-8.
        index: its place in the file, from 0.

    Raises:
        QuestionError: it is no question.
    """
    fields = _decode(line)
    for name in fields:
        if name not in FIELDS:
            raise QuestionError(
                f"{name}: unknown field; there are {', '.join(FIELDS[:-1])}; fields of your own go under metadata"
            )
    for name in ("question", "answers"):
        if name not in fields:
            raise QuestionError(f"{name}: is missing; each line needs it")
    given = fields["answers"]
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list) or not answers:
        raise QuestionError(
            f"answers: expected a string or a list of strings, found {kind_of(given)}; give at least one right answer"
        )
    context, group, identity = fields.get("context"), fields.get("group"), fields.get("id")
    if isinstance(identity, bool) or not isinstance(identity, (str, int, type(None))):
        raise QuestionError(f"id: expected a string or a whole number, found {kind_of(identity)}; write it as a string")
    return OwnQuestion(
        index=index,
        context="" if context is None else _text("context", context),
        text=_filled("question", fields["question"]),
        answers=tuple(_filled("answers", answer) for answer in answers),
        group=None if group is None else _filled("group", group),
        id=_text("id", identity) if isinstance(identity, str) else identity,
    )


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"), object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise QuestionError(f"not a JSON object in UTF-8 ({reason}); write one question a line") from None
    if not isinstance(value, dict):
        raise QuestionError(f"expected an object, found {kind_of(value)}; write one question a line")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise QuestionError(f"{name}: expected a string, found {kind_of(value)}; write it in quotes")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise QuestionError(f"{name}: holds half of a surrogate pair, which no tokenizer can encode; repair the text") from None
    return value


def _filled(name: str, value: object) -> str:
    text = _text(name, value)
    if not text.strip():
        raise QuestionError(f"{name}: is blank; fill it in, or remove the line")
    return text
