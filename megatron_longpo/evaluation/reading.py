"""Questions about texts of a local file, among other texts: RULER's two tasks of reading (arXiv 2404.06654, section 3.4)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.sample import CountTokens, NoRoomError, Sample, fill
from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.inference.messages import join_message
from megatron_longpo.utils.errors import UserError

INTRODUCTION = "Answer the question after these texts from what they say. Reply with the answer only, without any other words."


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, with the numbers of the texts that answer it and of those that are close to it."""

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Questions about texts; ``name`` and ``sha256`` are the file's."""

    name: str
    sha256: str
    texts: tuple[str, ...]
    questions: tuple[Question, ...]


def load_squad(path: Path) -> QuestionSet:
    """Read a file of SQuAD, 1.1 or 2.0, without the questions that have no answer. Near are the paragraphs of the same article.

    Raises:
        UserError: it cannot be read.
    """
    texts: dict[str, int] = {}
    questions: list[Question] = []

    def read(content: Any) -> None:
        for article in content["data"]:
            numbers = [texts.setdefault(paragraph["context"], len(texts)) for paragraph in article["paragraphs"]]
            for number, paragraph in zip(numbers, article["paragraphs"], strict=True):
                near = tuple(dict.fromkeys(other for other in numbers if other != number))
                for entry in paragraph["qas"]:  # those that 2.0 calls impossible have no answers
                    answers = tuple(dict.fromkeys(str(answer["text"]) for answer in entry["answers"]))
                    questions.append(Question(str(entry["question"]), answers, (number,), near))

    return _load(path, "--squad", "SQuAD", read, texts, questions)


def load_hotpotqa(path: Path) -> QuestionSet:
    """Read a file of HotpotQA, such as its distractor set.

    Needed are the paragraphs with supporting facts, near are the question's others.

    Raises:
        UserError: it cannot be read.
    """
    texts: dict[str, int] = {}
    questions: list[Question] = []

    def read(content: Any) -> None:
        for entry in content:
            numbers = {}
            for title, sentences in entry["context"]:
                numbers[title] = texts.setdefault(f"{title}\n{''.join(sentences)}", len(texts))
            supporting = {title for title, _ in entry["supporting_facts"]}
            needed = tuple(number for title, number in numbers.items() if title in supporting)
            near = tuple(number for title, number in numbers.items() if title not in supporting)
            questions.append(Question(str(entry["question"]), (str(entry["answer"]),), needed, near))

    return _load(path, "--hotpotqa", "HotpotQA", read, texts, questions)


def _load(path: Path, flag: str, form: str, read: Any, texts: dict[str, int], questions: list[Question]) -> QuestionSet:
    try:
        content = path.read_bytes()
        read(json.loads(content))
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; give the JSON file of {form}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        where = f" near question {len(questions) + 1}" if questions else ""
        raise UserError(f"{flag} {path}: not a file of {form}{where} ({reason})") from None
    usable = tuple(question for question in questions if question.needed and any(answer.strip() for answer in question.answers))
    if not usable:
        raise UserError(f"{flag} {path}: holds no question with an answer and the text that gives it")
    return QuestionSet(path.name, hashlib.sha256(content).hexdigest(), tuple(texts), usable)


@dataclasses.dataclass(frozen=True)
class ReadingTask:
    """RULER's `qa_1` (SQuAD) or `qa_2` (HotpotQA).

    The texts that a question needs are always there. To these come texts close to it, then others, as many as fit; all are
    shuffled.
    Answers get 64 tokens (RULER's 32 come after an opening that it writes for the model).
    """

    name: str
    source: QuestionSet
    answer_tokens: int = 64
    _sizes: dict[tuple[CountTokens, int], int] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def make(self, sources: Sources, length: int, index: int) -> Sample:
        """Make a sample; see `sources.Task`.

        Raises:
            UserError: there are not so many questions whose own texts fit.
        """
        question = self._draw(sources, length, index)
        rng = sources.random(self.name, length, index)
        texts = self.source.texts
        near = rng.sample(question.near, len(question.near))
        close = {*question.needed, *near}
        others = [number for number in range(len(texts)) if number not in close]
        numbers = [*question.needed, *near, *rng.sample(others, len(others))]
        rank = {number: rng.random() for number in numbers}

        def build(units: int) -> str:
            return self._message(question, sorted(numbers[:units], key=rank.__getitem__))

        least = len(question.needed)
        units = fill(lambda units: sources.count(build(units)), length - self.answer_tokens, least=least, most=len(numbers))
        message = build(units)
        return Sample(message=message, question=question.text, expected=question.answers, prompt_tokens=sources.count(message))

    def _message(self, question: Question, numbers: list[int]) -> str:
        listed = (f"Text {place}:\n{self.source.texts[number]}" for place, number in enumerate(numbers, start=1))
        return join_message(INTRODUCTION, *listed, INTRODUCTION, f"Question: {question.text}")

    def _draw(self, sources: Sources, length: int, index: int) -> Question:
        """Return the index-th question, in an order of the seed's, of those whose own texts fit."""
        budget = length - self.answer_tokens
        least = None
        for place, question in enumerate(self._that_fit(sources, budget)):
            if place == index:
                return question
            least = place
        if least is None:
            shortest = min(self.source.questions, key=lambda question: sum(len(self.source.texts[n]) for n in question.needed))
            raise NoRoomError(sources.count(self._message(shortest, list(shortest.needed))))
        raise UserError(
            f"{self.source.name}: {least + 1} of {len(self.source.questions)} questions fit into {length} tokens with their "
            "texts; lower --samples, or leave this length out"
        )

    def _that_fit(self, sources: Sources, budget: int) -> Iterator[Question]:
        questions = self.source.questions
        for number in sources.random(self.name, "order").sample(range(len(questions)), len(questions)):
            question, key = questions[number], (sources.count, number)
            if key not in self._sizes:
                self._sizes[key] = sources.count(self._message(question, list(question.needed)))
            if self._sizes[key] <= budget:
                yield question
