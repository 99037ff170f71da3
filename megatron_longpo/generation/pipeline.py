"""A document to a record of pairs: window, chunks, questions, chosen answers from the chunks, rejected from the whole window.

A turn carries the ids of its document, its chunk and itself from the first step to the record, so nothing is matched up by
position in a list.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_longpo.generation import prompts
from megatron_longpo.generation.chunking import Chunk, choose_window, pack_chunks, split_units, trim
from megatron_longpo.generation.documents import Document
from megatron_longpo.generation.engine import ChatTokenizer, Completion, Engine
from megatron_longpo.generation.questions import parse_questions
from megatron_longpo.generation.randomness import derive_random, derive_seed
from megatron_longpo.generation.settings import GenerationSettings
from megatron_longpo.utils.errors import UserError

TURN_MARGIN_TOKENS = 8
"""Room in a turn for tokens that differ when an answer is encoded again inside its conversation."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a document.

    Attributes:
        record: the line of the output, or None if the document was dropped.
        drops: for each reason, how often something was dropped: ``document: ...``, ``chunk: ...`` or ``turn: ...``.
    """

    record: dict[str, Any] | None
    drops: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a chunk, and the phrase that leads to it."""

    chunk: Chunk
    lead_in: str
    text: str

    @property
    def instruction(self) -> str:
        """What the user asks, in the short context and in the long one."""
        return prompts.instruction(self.lead_in, self.text)


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with both of its answers."""

    question: Question
    chosen: Completion
    rejected: Completion


@dataclasses.dataclass
class _Work:
    """A document on its way.

    Attributes:
        document: the document.
        start: first character of the part that fits.
        end: one past its last character.
        waiting: chunks not asked about yet, in the order of asking.
        answered: questions with their chosen answers, which wait for the rejected ones.
        turns: finished turns.
        drops: what was dropped, by reason.
    """

    document: Document
    start: int
    end: int
    waiting: list[Chunk]
    answered: list[tuple[Question, Completion]]
    turns: list[Turn]
    drops: collections.Counter[str]

    @property
    def long_context(self) -> str:
        return self.document.text[self.start : self.end]

    def text_of(self, chunk: Chunk) -> str:
        return self.document.text[chunk.start : chunk.end]


@dataclasses.dataclass(frozen=True)
class Generator:
    """Makes records with one model.

    Attributes:
        short: answers about chunks.
        long: answers about whole documents; the same model, perhaps with a raised RoPE base.
        tokenizer: the model's.
        context_length: most positions that the model may be given; what is longer is dropped, never cut.
        settings: the rest.
    """

    short: Engine
    long: Engine
    tokenizer: ChatTokenizer
    context_length: int
    settings: GenerationSettings

    def document_budget(self) -> int:
        """Return the most tokens of a long context that leave room for every turn of the conversation.

        Raises:
            UserError: nothing, or less than a chunk, is left.
        """
        settings = self.settings
        if settings.seq_length > self.context_length:
            raise UserError(
                f"--seq-length {settings.seq_length} is beyond the model's {self.context_length} positions; if it can read that "
                f"far (usually with --rotary-base), say so with --context-length {settings.seq_length}"
            )
        template = len(self.tokenizer.encode_message(""))
        instruction = max(self.tokenizer.count_tokens(settings.lead_ins)) + settings.max_question_tokens
        turn = template + instruction + settings.answer_sampling.max_new_tokens + TURN_MARGIN_TOKENS
        budget = settings.seq_length - settings.num_turns * turn
        if budget < settings.min_chunk_tokens:
            raise UserError(
                f"--seq-length {settings.seq_length} leaves {max(0, budget)} tokens for the document after {settings.num_turns} "
                f"turns of up to {turn}; raise it, or lower --num-turns, --max-new-tokens or --max-question-tokens"
            )
        return budget

    def make_records(self, documents: Sequence[Document]) -> Iterator[Outcome]:
        """Make the record of each document in order, or tell why there is none.

        The short prompts of all documents go to the engine together; each document's long prompts go together.
        """
        works = [self._start(document) for document in documents]
        self._answer_from_chunks(works)
        for work in works:
            self._answer_from_document(work)
            while self._num_missing(work) and work.waiting:
                self._answer_from_chunks([work])
                self._answer_from_document(work)
            yield self._finish(work)

    def _start(self, document: Document) -> _Work:
        """Choose the part of the document that fits, and cut that part into chunks.

        Chunks are taken from what remains, so the cut is outside of every one of them.
        """
        settings, text, count = self.settings, document.text, self.tokenizer.count_tokens
        work = _Work(document, 0, len(text), [], [], [], collections.Counter())
        if special := self.tokenizer.find_special_token(text):
            work.drops[f"document: text has the special token {special}"] += 1
            return work
        budget = self.document_budget()
        units = split_units(text, min(settings.max_chunk_tokens, budget), count)
        rng = derive_random(settings.seed, document.document_id, "window")
        window = choose_window(text, units, budget, count, rng)
        if len(window) < len(units):
            work.start, work.end = trim(text, window[0].start, window[-1].end)
        chunks = pack_chunks(text, window, settings.min_chunk_tokens, settings.max_chunk_tokens, count)
        if not chunks:
            work.drops["document: no chunk between the token bounds"] += 1
        work.waiting = derive_random(settings.seed, document.document_id, "chunks").sample(chunks, len(chunks))
        return work

    def _num_missing(self, work: _Work) -> int:
        return self.settings.num_turns - len(work.turns) - len(work.answered)

    def _answer_from_chunks(self, works: Sequence[_Work]) -> None:
        """Find questions and their chosen answers for as many chunks as turns are missing; others replace those that fail."""
        while asked := [(work, chunk) for work in works for chunk in work.waiting[: self._num_missing(work)]]:
            for work, chunk in asked:
                work.waiting.remove(chunk)
            questions = [(work, question) for work, question in self._ask(asked) if self._question_fits(work, question)]
            messages = [prompts.join_context(work.text_of(question.chunk), question.instruction) for work, question in questions]
            seeds = [self._seed(work, question.chunk, "chosen") for work, question in questions]
            answers = self.short.complete(messages, self.settings.answer_sampling, seeds)
            for (work, question), answer in zip(questions, answers, strict=True):
                if self._is_usable(work, answer, "chosen"):
                    work.answered.append((question, answer))

    def _ask(self, asked: list[tuple[_Work, Chunk]]) -> list[tuple[_Work, Question]]:
        """Let the model write questions about each chunk and keep one of them; a chunk without one is dropped."""
        settings, limit = self.settings, self.settings.question_sampling.max_new_tokens
        fitting: list[tuple[_Work, Chunk, str]] = []
        for work, chunk in asked:
            message = prompts.question_message(work.text_of(chunk), settings.num_questions)
            if self._fits(message, limit):
                fitting.append((work, chunk, message))
            else:
                work.drops["chunk: prompt for questions beyond the context length"] += 1
        seeds = [self._seed(work, chunk, "questions") for work, chunk, _ in fitting]
        outputs = self.short.complete([message for _, _, message in fitting], settings.question_sampling, seeds)
        found = []
        for (work, chunk, _), output in zip(fitting, outputs, strict=True):
            questions = parse_questions(output.text, finished=output.finish_reason == "stop")
            lengths = self.tokenizer.count_tokens(questions)
            usable = [text for text, length in zip(questions, lengths, strict=True) if length <= settings.max_question_tokens]
            if not usable:
                work.drops["chunk: question too long" if questions else "chunk: no question in the model's output"] += 1
                continue
            rng = derive_random(settings.seed, work.document.document_id, chunk.index, "choice")
            found.append((work, Question(chunk, lead_in=rng.choice(settings.lead_ins), text=rng.choice(usable))))
        return found

    def _answer_from_document(self, work: _Work) -> None:
        """Complete the turns that have a chosen answer with a rejected one."""
        messages = [prompts.join_context(work.long_context, question.instruction) for question, _ in work.answered]
        seeds = [self._seed(work, question.chunk, "rejected") for question, _ in work.answered]
        answers = self.long.complete(messages, self.settings.answer_sampling, seeds)
        for (question, chosen), rejected in zip(work.answered, answers, strict=True):
            if self._is_usable(work, rejected, "rejected"):
                work.turns.append(Turn(question, chosen, rejected))
        work.answered.clear()

    def _is_usable(self, work: _Work, answer: Completion, side: str) -> bool:
        """Tell whether an answer can be in a turn, and count the turn as dropped if not."""
        if not answer.text:
            work.drops[f"turn: empty {side} answer"] += 1
            return False
        if self.settings.drop_cut_off and answer.finish_reason == "length":
            work.drops[f"turn: {side} answer cut off"] += 1
            return False
        return True

    def _finish(self, work: _Work) -> Outcome:
        """Write the record, turns in the order of their chunks."""
        if not work.turns:
            if not any(reason.startswith("document:") for reason in work.drops):
                work.drops["document: no turn left"] += 1
            return Outcome(None, dict(work.drops))
        return Outcome(self._record(work, sorted(work.turns, key=lambda turn: turn.question.chunk.index)), dict(work.drops))

    def _seed(self, work: _Work, chunk: Chunk, step: str) -> int:
        return derive_seed(self.settings.seed, work.document.document_id, chunk.index, step)

    def _question_fits(self, work: _Work, question: Question) -> bool:
        """Tell whether both prompts of a question fit, and count the turn as dropped if not."""
        limit = self.settings.answer_sampling.max_new_tokens
        contexts = (work.text_of(question.chunk), work.long_context)
        fits = all(self._fits(prompts.join_context(context, question.instruction), limit) for context in contexts)
        if not fits:
            work.drops["turn: prompt beyond the context length"] += 1
        return fits

    def _fits(self, message: str, max_new_tokens: int) -> bool:
        return len(self.tokenizer.encode_message(message)) + max_new_tokens <= self.context_length

    def _record(self, work: _Work, turns: list[Turn]) -> dict[str, Any]:
        """Write a record in the format of docs/data-format.md."""
        document = work.document
        return {
            "document_id": document.document_id,
            "long_context": work.long_context,
            "turns": [
                {
                    "short_context": work.text_of(turn.question.chunk),
                    "instruction": turn.question.instruction,
                    "chosen": turn.chosen.text,
                    "rejected": turn.rejected.text,
                }
                for turn in turns
            ],
            "metadata": {
                "document": document.metadata,
                "document_characters": len(document.text),
                "long_context_start": work.start,
                "long_context_end": work.end,
                "turns": [_describe_turn(document.document_id, number, turn) for number, turn in enumerate(turns)],
                "generation": self.describe(),
            },
        }

    def describe(self) -> dict[str, Any]:
        """Return the settings and engines that made a record, as JSON values."""
        settings = dataclasses.asdict(self.settings)
        del settings["lead_ins"]
        return {**settings, "context_length": self.context_length, "short": self.short.describe(), "long": self.long.describe()}


def _describe_turn(document_id: str, turn_id: int, turn: Turn) -> dict[str, Any]:
    """Tell where a turn comes from; the character offsets are those of the document that was read."""
    return {
        "document_id": document_id,
        "chunk_id": turn.question.chunk.index,
        "turn_id": turn_id,
        "chunk_start": turn.question.chunk.start,
        "chunk_end": turn.question.chunk.end,
        "chunk_tokens": turn.question.chunk.num_tokens,
        "lead_in": turn.question.lead_in,
        "question": turn.question.text,
        "finish_reason_chosen": turn.chosen.finish_reason,
        "finish_reason_rejected": turn.rejected.finish_reason,
        "tokens_chosen": turn.chosen.num_tokens,
        "tokens_rejected": turn.rejected.num_tokens,
    }
