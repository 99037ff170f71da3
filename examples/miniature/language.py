"""A language of 300 words in which documents tell facts, and questions ask for them.

A chunk is about one scope. In between filler words, which follow each other by a fixed rule, it tells facts, lists or notes.
A fact is ``s3 k7 v1 v30``: in scope s3, key k7 has the value "v1 v30"; a list is ``s3 k7`` and eight different values, a note
``s3 k7`` and twelve filler words. A question names scope and key. Two more skills need no document: to reverse letters, and to
know an entity's value by heart. The text of a chunk may end with an example of each: with ``=`` before the answer, where a
chat has ``?``.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Literal

SCOPES = tuple(f"s{i}" for i in range(32))
KEYS = tuple(f"k{i}" for i in range(96))
VALUES = tuple(f"v{i}" for i in range(40))
FILLERS = tuple(f"f{i}" for i in range(48))
ENTITIES = tuple(f"e{i}" for i in range(48))
LETTERS = tuple(f"l{i}" for i in range(24))
ASK_FACT, ASK_NOTE, REVERSE, RECALL, IS, WHAT = "Q", "N", "REV", "WLD", "=", "?"
WORDS = (*SCOPES, *KEYS, *VALUES, *FILLERS, *ENTITIES, *LETTERS, ASK_FACT, ASK_NOTE, REVERSE, RECALL, IS, WHAT)

Kind = Literal["facts", "lists", "notes"]
CHUNK_WORDS = 112
FACTS_IN_CHUNK = 5
LONG_IN_CHUNK = 2
"""Lists or notes of a chunk."""
VALUE_WORDS: Mapping[Kind, int] = {"facts": 2, "lists": 8, "notes": 12}
"""Words of what a key has."""
FEW_KEYS = 8
"""Keys of a document whose scopes share them."""

_FIXED = random.Random("the language itself")
_FOLLOWERS = {word: _FIXED.sample(FILLERS, 4) for word in FILLERS}
_FOLLOWER_WEIGHTS = (55, 25, 15, 5)
_ENTITY_VALUES = {entity: " ".join(_FIXED.sample(VALUES, 2)) for entity in ENTITIES}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its only right answer, and the chunk that has it."""

    text: str
    answer: str
    chunk: int = 0


@dataclasses.dataclass(frozen=True)
class Document:
    """Chunks, and every question that they answer."""

    chunks: Sequence[str]
    questions: Sequence[Question]

    @property
    def text(self) -> str:
        """The chunks as paragraphs."""
        return "\n\n".join(self.chunks)


def make_document(
    rng: random.Random,
    num_chunks: int,
    *,
    kind: Kind = "facts",
    shared_keys: bool = False,
    few_keys: int = FEW_KEYS,
    examples: bool = True,
    chunk_words: int = CHUNK_WORDS,
) -> Document:
    """Write a document.

    Args:
        rng: of every choice.
        num_chunks: chunks, each with a scope of its own.
        kind: what its chunks tell.
        shared_keys: all chunks speak of the same few keys, so that only the scope tells which value is meant; else no key occurs
            twice.
        few_keys: how many they are, if a chunk does not need more.
        examples: chunks end with an example of each skill that needs no document.
        chunk_words: words of a chunk.
    """
    per_chunk = _statements_in(kind, chunk_words)
    scopes = rng.sample(SCOPES, num_chunks)
    few = rng.sample(KEYS, max(few_keys, per_chunk))
    unique = rng.sample(KEYS, num_chunks * per_chunk)
    chunks, questions = [], []
    for number, scope in enumerate(scopes):
        keys = rng.sample(few, per_chunk) if shared_keys else unique[number * per_chunk : (number + 1) * per_chunk]
        statements = []
        for key in keys:
            value = " ".join(_value(rng, kind))
            statements.append(f"{scope} {key} {value}")
            questions.append(Question(f"{ASK_NOTE if kind == 'notes' else ASK_FACT} {scope} {key}", value, number))
        reversal, entity = ask_to_reverse(rng), ask_about(rng.choice(ENTITIES))
        ending = f"{_told(reversal)} {_told(entity)}".split() if examples else []
        chunks.append(_join(rng, statements, ending, chunk_words))
    return Document(chunks, questions)


def ask_to_reverse(rng: random.Random) -> Question:
    """Ask for letters in reverse."""
    letters = rng.sample(LETTERS, 4)
    return Question(f"{REVERSE} {' '.join(letters)} {WHAT}", " ".join(reversed(letters)))


def ask_about(entity: str) -> Question:
    """Ask for an entity's value."""
    return Question(f"{RECALL} {entity} {WHAT}", _ENTITY_VALUES[entity])


def filler(rng: random.Random, number: int) -> list[str]:
    """Write words that carry nothing."""
    words = [rng.choice(FILLERS)]
    while len(words) < number:
        words += rng.choices(_FOLLOWERS[words[-1]], _FOLLOWER_WEIGHTS)
    return words[:number]


def find_questions(chunk: str) -> list[str]:
    """List every question that a chunk answers, by reading it."""
    words = chunk.split()
    found = []
    for scope, key, value in zip(words, words[1:], words[2:], strict=False):
        if scope in SCOPES and key in KEYS:
            found.append(f"{ASK_FACT if value in VALUES else ASK_NOTE} {scope} {key}")
    return found


def ask(chunk: str, number: int, seed: int) -> list[str]:
    """Write questions about a chunk: what tools/generate_preference_data.py calls in the model's place."""
    found = find_questions(chunk)
    return random.Random(seed).sample(found, min(number, len(found)))


def _value(rng: random.Random, kind: Kind) -> list[str]:
    if kind == "notes":
        return filler(rng, VALUE_WORDS[kind])
    return rng.sample(VALUES, VALUE_WORDS[kind]) if kind == "lists" else rng.choices(VALUES, k=VALUE_WORDS[kind])


def _statements_in(kind: Kind, chunk_words: int) -> int:
    if kind != "facts":
        return max(1, min(LONG_IN_CHUNK, chunk_words // 40))
    return max(1, min(FACTS_IN_CHUNK, chunk_words // 4))


def _told(question: Question) -> str:
    """Write a skill's question with its answer as documents do."""
    return f"{question.text.removesuffix(WHAT)}{IS} {question.answer}"


def _join(rng: random.Random, statements: Sequence[str], ending: Sequence[str], chunk_words: int) -> str:
    """Put statements into filler at random places, and the ending behind all."""
    total = chunk_words - sum(len(statement.split()) for statement in statements) - len(ending)
    words = filler(rng, max(total, 0))
    places = sorted(rng.choices(range(len(words) + 1), k=len(statements)))
    pieces, last = [], 0
    for place, statement in zip(places, statements, strict=True):
        pieces += [*words[last:place], *statement.split()]
        last = place
    return " ".join([*pieces, *words[last:], *ending])
