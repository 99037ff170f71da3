"""Write what the miniature reads: short lessons for the base model, long documents without answers, questions for evaluation."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from language import (
    CHUNK_WORDS,
    ENTITIES,
    VALUES,
    Document,
    Kind,
    Question,
    ask_about,
    ask_to_reverse,
    filler,
    make_document,
)

SKILLS = 0.15
"""Share of lessons about the skills that need no document."""
NOTES = 0.25
"""Share of the other lessons of 36 words or more whose documents tell notes."""
TURNS_IN_LESSON = 5


def lessons(
    rng: random.Random, number: int, words: Sequence[int], *, lists: float = 0.0, scopes: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Make labelled chats of short documents, and of the skills that need none: what the base model is taught by plain SFT.

    The format has two sides; only the chosen one is learned from, and the other differs in its last answer. ``lists`` is the
    share of the longer documents that tell lists, ``scopes`` that of all documents in which only the scope tells what is meant.
    """
    for index in range(number):
        context, questions = _skills(rng) if rng.random() < SKILLS else _lesson(rng, rng.choice(words), lists, scopes)
        wrong = rng.choice(VALUES)
        turns = [
            {"short_context": context, "instruction": question.text, "chosen": question.answer, "rejected": question.answer}
            for question in questions
        ]
        turns[-1]["rejected"] = wrong if wrong != turns[-1]["chosen"] else f"{wrong} {wrong}"
        yield {"document_id": f"lesson-{index}", "long_context": context, "turns": turns}


def _skills(rng: random.Random) -> tuple[str, list[Question]]:
    asked = [ask_to_reverse(rng) if rng.random() < 0.5 else ask_about(rng.choice(ENTITIES)) for _ in range(6)]
    return " ".join(filler(rng, rng.randint(1, 12))), asked


def _lesson(rng: random.Random, words: int, lists: float, scopes: float) -> tuple[str, list[Question]]:
    if scopes and rng.random() < scopes:
        return _lesson_about_scopes(rng, words)
    kind: Kind = "facts"
    if words >= 36:
        kind = "lists" if lists and rng.random() < lists else "notes" if rng.random() < NOTES else "facts"
    parts = 2 if words >= 48 and rng.random() < 0.5 else 1
    document = make_document(
        rng,
        parts,
        kind=kind,
        shared_keys=parts == 2 and rng.random() < 0.7,
        examples=words // parts >= 40 and rng.random() < 0.5,
        chunk_words=words // parts,
    )
    rounds = 1 if kind != "facts" or words > 48 else 2  # on the shortest, the second round can look back at the first
    asked = [rng.sample(document.questions, min(len(document.questions), TURNS_IN_LESSON)) for _ in range(rounds)]
    return document.text, [question for questions in asked for question in questions]


def _lesson_about_scopes(rng: random.Random, words: int) -> tuple[str, list[Question]]:
    """Every scope says something of every key."""
    parts = rng.choice([number for number in (2, 3, 4) if words // number >= 4])
    examples = words // parts >= 40 and rng.random() < 0.5
    document = make_document(rng, parts, shared_keys=True, few_keys=1, examples=examples, chunk_words=words // parts)
    return document.text, rng.sample(document.questions, min(len(document.questions), 2 * TURNS_IN_LESSON))


def documents(rng: random.Random, number: int, chunks: int, kind: Kind, shared_keys: bool) -> Iterator[dict[str, Any]]:
    """Make long documents, nothing but text."""
    for index in range(number):
        document = make_document(rng, chunks, kind=kind, shared_keys=shared_keys)
        yield {"document_id": f"document-{index}", "text": document.text}


def questions(
    rng: random.Random, lengths: list[int], number: int, kind: Kind, shared_keys: bool, per_document: int = 4
) -> Iterator[dict[str, Any]]:
    """Make questions about documents of each length, in chunks, and about the skills that need none."""
    for chunks in lengths:
        for _ in range(number // per_document):
            document = make_document(rng, chunks, kind=kind, shared_keys=shared_keys)
            for question in _spread(rng, document, per_document):
                yield _question(f"{chunks}x", document.text, question)
    for _ in range(number):
        yield _question("reverse", " ".join(filler(rng, 4)), ask_to_reverse(rng))
    for entity in ENTITIES:
        yield _question("recall", " ".join(filler(rng, 4)), ask_about(entity))


def _spread(rng: random.Random, document: Document, number: int) -> list[Question]:
    """Choose questions from as many chunks as there are."""
    chunks = Counter[int]()
    chosen = []
    for question in rng.sample(document.questions, len(document.questions)):
        chosen.append((chunks[question.chunk], question))
        chunks[question.chunk] += 1
    return [question for _, question in sorted(chosen, key=lambda item: item[0])[:number]]


def _question(group: str, context: str, question: Question) -> dict[str, Any]:
    return {"group": group, "context": context, "question": question.text, "answers": [question.answer]}


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("lessons", "documents", "questions"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--number", type=int, required=True, help="lessons, documents, or questions of each group")
    parser.add_argument("--words", type=int, nargs="+", default=[CHUNK_WORDS], help="lengths of lessons, in words")
    parser.add_argument("--lists", type=float, default=0.0, help="share of the lessons of 36 words or more that are about lists")
    parser.add_argument(
        "--scopes", type=float, default=0.0, help="share of the lessons in which only the scope tells what is meant"
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=[8], help="lengths of documents, in chunks")
    parser.add_argument("--kind", choices=("facts", "lists"), default="facts")
    parser.add_argument("--shared-keys", action="store_true", help="the scopes of a document share their keys")
    arguments = parser.parse_args()
    rng = random.Random(f"{arguments.what} {arguments.seed}")
    number, kind, shared = arguments.number, arguments.kind, arguments.shared_keys
    make: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "lessons": lambda: lessons(rng, number, arguments.words, lists=arguments.lists, scopes=arguments.scopes),
        "documents": lambda: documents(rng, number, arguments.chunks[0], kind, shared),
        "questions": lambda: questions(rng, arguments.chunks, number, kind, shared),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in make[arguments.what]():
            file.write(json.dumps(record) + "\n")
    partial.replace(arguments.output)


if __name__ == "__main__":
    main()
