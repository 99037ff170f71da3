"""InfiniteBench's English books (arXiv 2402.13718): summaries, questions and choices, from its published files on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.sample import CountTokens, NoRoomError, Sample, fill
from megatron_longpo.evaluation.scoring import CHOICES, Score, picks_choice, rouge_lsum, word_f1
from megatron_longpo.inference.messages import join_message
from megatron_longpo.utils.errors import UserError

SplitTokens = Callable[[str], Sequence[int]]
"""Where in a text its tokens start, as character offsets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BookTask:
    """One of the three.

    Attributes:
        name: ours.
        title: the paper's.
        file: the published file.
        answer_tokens: most tokens of an answer, as published.
        score: as published.
        instruction: what is asked, from a record.
    """

    name: str
    title: str
    file: str
    answer_tokens: int
    score: Score
    instruction: Callable[[Mapping[str, Any]], str]


def _summarise(record: Mapping[str, Any]) -> str:
    return "Write a summary of this book."


def _ask(record: Mapping[str, Any]) -> str:
    return f"Question about this book: {record['input']}\nAnswer in a few words."


def _ask_choice(record: Mapping[str, Any]) -> str:
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(CHOICES, record["options"], strict=True))
    return (
        f"Question about this book: {record['input']}\nExactly one of these answers is right:\n{options}\n"
        "Reply with its letter, A, B, C or D, and nothing else."
    )


BOOK_TASKS = (
    BookTask(
        name="en_sum", title="En.Sum", file="longbook_sum_eng.jsonl", answer_tokens=1200, score=rouge_lsum, instruction=_summarise
    ),
    BookTask(name="en_qa", title="En.QA", file="longbook_qa_eng.jsonl", answer_tokens=40, score=word_f1, instruction=_ask),
    BookTask(
        name="en_mc",
        title="En.MC",
        file="longbook_choice_eng.jsonl",
        answer_tokens=40,
        score=picks_choice,
        instruction=_ask_choice,
    ),
)
NAMES = tuple(task.name for task in BOOK_TASKS)


@dataclasses.dataclass(frozen=True)
class BookQuestion:
    """A record of a published file; ``index`` is its line, from 0, and ``book`` a hash of its text."""

    index: int
    context: str
    book: str
    instruction: str
    expected: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BookFile:
    """A published file."""

    task: BookTask
    sha256: str
    questions: tuple[BookQuestion, ...]


def load_books(folder: Path, task: BookTask, limit: int | None) -> BookFile:
    """Read a task's file, its first ``limit`` records. Records about one book are put together.

    Raises:
        UserError: the file or a record cannot be read.
    """
    path = folder / task.file
    digest = hashlib.sha256()
    questions: list[BookQuestion] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines):
                if limit is not None and len(questions) >= limit:
                    break
                digest.update(line)
                if line.strip():
                    questions.append(_read(task, number, line))
    except OSError as error:
        raise UserError(f"--infinitebench {path}: {error.strerror}; give the folder of InfiniteBench's JSONL files") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}:{number + 1}: not a record of {task.title} ({reason})") from None
    if not questions:
        raise UserError(f"{path}: holds no record")
    first = {question.book: question.index for question in reversed(questions)}
    return BookFile(task, digest.hexdigest(), tuple(sorted(questions, key=lambda one: (first[one.book], one.index))))


def _read(task: BookTask, index: int, line: bytes) -> BookQuestion:
    record = json.loads(line)
    context, answers = record["context"], record["answer"]
    expected = [str(answer) for answer in ([answers] if isinstance(answers, str) else answers)]
    if not isinstance(context, str) or not context.strip() or not expected:
        raise ValueError("its context or its answer is empty")
    if task.name == "en_mc":
        options = record["options"]
        if len(options) != len(CHOICES):
            raise ValueError(f"{len(options)} options in place of {len(CHOICES)}")
        if len(expected) == 1:
            if expected[0] not in options:
                raise ValueError(f"its answer {expected[0]!r:.80} is none of its options")
            expected.append(CHOICES[options.index(expected[0])])
    book = hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return BookQuestion(index, context, book, task.instruction(record), tuple(expected))


def make_sample(question: BookQuestion, count: CountTokens, split: SplitTokens, budget: int) -> Sample:
    """Make a prompt of at most ``budget`` tokens. A book that does not fit loses its middle, as published; never the question.

    Raises:
        NoRoomError: the question alone does not fit.
    """

    def build(context: str) -> str:
        return join_message("Read this book.", context, question.instruction)

    message = build(question.context)
    tokens = count(message)
    cut = tokens > budget
    if cut:
        message = build(_cut_middle(question.context, lambda text: count(build(text)), split, budget))
        tokens = count(message)
    return Sample(message=message, question=question.instruction, expected=question.expected, prompt_tokens=tokens, cut=cut)


def _cut_middle(text: str, count: CountTokens, split: SplitTokens, budget: int) -> str:
    """Leave out the middle, so that as much of the start as of the end is left and what is left fits."""
    starts, frame = split(text), count("")
    room = budget - frame
    if room < 2:
        raise NoRoomError(frame)
    half = fill(lambda kept: count(text[: starts[kept]]), frame + room // 2, least=0, most=len(starts) - 1)
    head = text[: starts[half]]

    def join(kept: int) -> str:
        return head + (text[starts[-kept] :] if kept else "")

    return join(fill(lambda kept: count(join(kept)), budget, least=0, most=len(starts) - half))
