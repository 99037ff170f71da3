"""A document to a record of pairs: window, chunks, questions, chosen answers from the chunks, rejected from the whole window.

A turn carries its chunk from the first step to the record, so nothing is matched up by position in a list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron_longpo.generation import checks
from megatron_longpo.generation.chunkers import CHUNKERS
from megatron_longpo.generation.chunking import Chunk, choose_window, pack_chunks, split_units, trim
from megatron_longpo.generation.documents import Document
from megatron_longpo.generation.filters import check_answer, check_pair
from megatron_longpo.generation.prompts import join_context
from megatron_longpo.generation.questions import parse_questions
from megatron_longpo.generation.records import describe_settings, make_record
from megatron_longpo.generation.settings import GenerationSettings
from megatron_longpo.generation.work import Outcome, Turn, Work
from megatron_longpo.inference.asking import Asker, Request, Step
from megatron_longpo.inference.engine import Completion, Engine, PromptTokenizer
from megatron_longpo.inference.randomness import derive_random, derive_seed
from megatron_longpo.utils.errors import UserError

TURN_MARGIN_TOKENS = 8
"""Room in a turn for tokens that differ when an answer is encoded again inside its conversation."""

QuestionMaker = Callable[[str, int, int], Sequence[str]]
"""A user's own generator: a chunk's text, how many questions, and a seed -> questions."""


@dataclasses.dataclass(frozen=True)
class Generator:
    """Makes records with one model.

    Attributes:
        short: answers about chunks.
        long: answers about whole documents; the same model, perhaps with a raised RoPE base.
        tokenizer: the model's.
        context_length: most positions that the model may be given; what is longer is dropped, never cut.
        settings: the rest.
        make_questions: writes the questions in the model's place.
        questions_by: its name, for the record.
    """

    short: Engine
    long: Engine
    tokenizer: PromptTokenizer
    context_length: int
    settings: GenerationSettings
    make_questions: QuestionMaker | None = None
    questions_by: str = "model"

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
        frame = [settings.prompts.instruct(lead_in, "?") for lead_in in settings.lead_ins]
        instruction = max(self.tokenizer.count_tokens(frame)) + settings.max_question_tokens
        turn = template + instruction + settings.answer_sampling.max_new_tokens + TURN_MARGIN_TOKENS
        budget = settings.seq_length - settings.num_turns * turn
        if budget < settings.min_chunk_tokens:
            raise UserError(
                f"--seq-length {settings.seq_length} leaves {max(0, budget)} tokens for the document after {settings.num_turns} "
                f"turns of up to {turn}; raise it, or lower --num-turns, --max-new-tokens or --max-question-tokens"
            )
        return budget

    def make_records(self, documents: Sequence[Document], asker: Asker) -> Iterator[Outcome]:
        """Make the record of each document in order, or tell why there is none.

        The short prompts of all documents go to the engine together; each document's long prompts go together.
        """
        works = [self.start(document) for document in documents]
        self._answer_from_chunks(works, asker)
        for work in works:
            self._answer_from_document(work, asker)
            while self._num_missing(work) and work.waiting:
                self._answer_from_chunks([work], asker)
                self._answer_from_document(work, asker)
            yield self._finish(work, asker)

    def start(self, document: Document) -> Work:
        """Choose the part of the document that fits, and cut that part into chunks.

        Chunks are taken from what remains, so the cut is outside of every one of them.
        """
        settings, text, count = self.settings, document.text, self.tokenizer.count_tokens
        work = Work(document, end=len(text))
        if special := self.tokenizer.find_special_token(text):
            work.drops[f"document: text has the special token {special}"] += 1
            return work
        [work.num_tokens] = count([text])
        if work.num_tokens < settings.min_document_tokens:
            work.drops["document: fewer tokens than --min-document-tokens"] += 1
            return work
        if work.num_tokens > (settings.max_document_tokens or settings.seq_length):
            work.drops["document: more tokens than --max-document-tokens"] += 1
            return work
        budget = self.document_budget()
        units = split_units(text, min(settings.max_chunk_tokens, budget), count, CHUNKERS[document.domain])
        rng = derive_random(settings.seed, document.document_id, "window")
        window = choose_window(text, work.num_tokens, units, budget, count, rng)
        if len(window) < len(units):
            work.start, work.end = trim(text, window[0].start, window[-1].end)
        chunks = pack_chunks(text, window, settings.min_chunk_tokens, settings.max_chunk_tokens, count)
        if not chunks:
            work.drops["document: no chunk between the token bounds"] += 1
        if document.questions:
            chunks = self._with_given_questions(work, chunks)
        work.waiting = derive_random(settings.seed, document.document_id, "chunks").sample(chunks, len(chunks))
        return work

    def _with_given_questions(self, work: Work, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Keep the chunks that hold what one of the document's own questions is about."""
        for question in work.document.questions:
            if not any(chunk.start <= question.start and question.end <= chunk.end for chunk in chunks):
                work.drops["question: what it is about is in no single chunk"] += 1
        return [chunk for chunk in chunks if self._given(work, chunk)]

    @staticmethod
    def _given(work: Work, chunk: Chunk) -> list[str]:
        asked = work.document.questions
        return [question.text for question in asked if chunk.start <= question.start and question.end <= chunk.end]

    def _num_missing(self, work: Work) -> int:
        return self.settings.num_turns - len(work.turns) - len(work.open)

    def _answer_from_chunks(self, works: Sequence[Work], asker: Asker) -> None:
        """Find questions and their chosen answers for as many chunks as turns are missing; others replace those that fail."""
        while asked := [(work, chunk) for work in works for chunk in work.waiting[: self._num_missing(work)]]:
            for work, chunk in asked:
                work.waiting.remove(chunk)
            turns = self._ask(asked, asker)  # their prompts fit: `document_budget` has left room for them
            requests = [self._request(work, turn, work.text_of(turn.chunk), "chosen") for work, turn in turns]
            answers = asker.complete(self.short, requests, self.settings.answer_sampling)
            answered = [
                (work, dataclasses.replace(turn, chosen=answer))
                for (work, turn), answer in zip(turns, answers, strict=True)
                if self._is_usable(work, turn, answer, "chosen")
            ]
            for work, turn in self._judge_chosen(answered, asker):
                work.open.append(turn)

    def _ask(self, asked: list[tuple[Work, Chunk]], asker: Asker) -> list[tuple[Work, Turn]]:
        """Find questions about each chunk and keep one of them; a chunk without one is dropped."""
        settings = self.settings
        found = []
        for (work, chunk), (questions, problem) in zip(asked, self._candidates(asked, asker), strict=True):
            lengths = self.tokenizer.count_tokens(questions)
            pairs = zip(questions, lengths, strict=True)
            usable = [
                (text, length)
                for text, length in pairs
                if length <= settings.max_question_tokens and not self.tokenizer.find_special_token(text)
            ]
            if not usable:
                work.drops["chunk: question too long, or with a special token" if questions else f"chunk: {problem}"] += 1
                continue
            rng = derive_random(settings.seed, work.document_id, chunk.index, "choice")
            lead_in, (question, length) = rng.choice(settings.lead_ins), rng.choice(usable)
            asked_for = settings.prompts.instruct(lead_in, question)
            turn = Turn(chunk=chunk, lead_in=lead_in, question=question, question_tokens=length, instruction=asked_for)
            found.append((work, turn))
        return found

    def _candidates(self, asked: list[tuple[Work, Chunk]], asker: Asker) -> list[tuple[list[str], str]]:
        """Questions about each chunk, from the document, the user's generator or the model, and why there may be none."""
        settings = self.settings
        found: dict[int, tuple[list[str], str]] = {}
        requests: dict[int, Request] = {}
        for place, (work, chunk) in enumerate(asked):
            message = settings.prompts.ask_questions(work.text_of(chunk), settings.num_questions)
            seed = self._seed(work, chunk, "questions")
            if work.document.questions:
                found[place] = self._given(work, chunk), "no question"
            elif self.make_questions is not None:
                made = self._make_questions(
                    Request(Step(work.document_id, chunk.index, "questions"), work.text_of(chunk), seed), asker
                )
                found[place] = [text for text in made if text.strip()], "no question of the question generator"
            elif self._fits(message, settings.question_sampling.max_new_tokens):
                requests[place] = Request(Step(work.document_id, chunk.index, "questions"), message, seed)
            else:
                found[place] = [], "prompt for questions beyond the context length"
        outputs = asker.complete(self.short, list(requests.values()), settings.question_sampling)
        for place, output in zip(requests, outputs, strict=True):
            failed = output.finish_reason == "failed"
            questions = parse_questions(output.text, finished=output.finish_reason == "stop")
            found[place] = questions, "request failed" if failed else "no question in the model's output"
        return [found[place] for place in range(len(asked))]

    def _make_questions(self, request: Request, asker: Asker) -> list[str]:
        number, make = self.settings.num_questions, self.make_questions
        assert make is not None
        return asker.once(request, [self.questions_by, number], lambda: list(make(request.message, number, request.seed)))

    def _answer_from_document(self, work: Work, asker: Asker) -> None:
        """Complete the turns that have a chosen answer with a rejected one."""
        requests = [self._request(work, turn, work.long_context, "rejected") for turn in work.open]
        answers = asker.complete(self.long, requests, self.settings.answer_sampling)
        both = []
        for turn, answer in zip(work.open, answers, strict=True):
            if self._is_usable(work, turn, answer, "rejected"):
                whole = dataclasses.replace(turn, rejected=answer)
                assert turn.chosen is not None
                reason = check_pair(turn.chosen.text, answer.text, self.settings.filters)
                if reason:
                    work.drop_turn(whole, "pair", reason)
                else:
                    both.append((work, whole))
        work.open.clear()
        work.turns += [turn for _, turn in self._weigh(self._judge_pairs(both, asker), asker)]

    def _judge_chosen(self, items: list[checks.Item], asker: Asker) -> list[checks.Item]:
        if self.settings.verify == "off":
            return items
        verdicts = checks.judge_chosen(asker, self.short, self.settings.prompts, items, self._fits)
        return self._judged(items, verdicts, "verified_chosen", "verifier: the chosen answer does not answer")

    def _judge_pairs(self, items: list[checks.Item], asker: Asker) -> list[checks.Item]:
        if self.settings.verify == "off":
            return items
        verdicts = checks.judge_pairs(asker, self.short, self.settings.prompts, items, self._fits)
        return self._judged(items, verdicts, "verified_better", "verifier: the rejected answer is better")

    def _judged(self, items: list[checks.Item], verdicts: Sequence[bool | None], field: str, reason: str) -> list[checks.Item]:
        """Write verdicts into the turns, and drop those with a verdict against them where the verifier filters."""
        judged = []
        for (work, turn), verdict in zip(items, verdicts, strict=True):
            found: dict[str, Any] = {field: verdict}
            judged.append((work, dataclasses.replace(turn, **found)))
        return self._keep(judged, self.settings.verify, lambda turn: getattr(turn, field) is not False, reason)

    def _weigh(self, items: list[checks.Item], asker: Asker) -> list[checks.Item]:
        settings = self.settings
        if settings.logprob_margin == "off":
            return items
        weighed = [
            (work, dataclasses.replace(turn, logprob_margin=checks.logprob_margin(asker, self.short, work, turn)))
            for work, turn in items
        ]
        least = settings.min_logprob_margin
        reason = "log-prob margin below --min-logprob-margin"
        return self._keep(
            weighed, settings.logprob_margin, lambda turn: turn.logprob_margin is None or turn.logprob_margin >= least, reason
        )

    @staticmethod
    def _keep(items: list[checks.Item], mode: str, is_good: Callable[[Turn], bool], reason: str) -> list[checks.Item]:
        """Drop what is not good where a check filters."""
        kept = []
        for work, turn in items:
            if mode == "filter" and not is_good(turn):
                work.drop_turn(turn, "check", reason)
            else:
                kept.append((work, turn))
        return kept

    def _is_usable(self, work: Work, turn: Turn, answer: Completion, side: str) -> bool:
        """Tell whether an answer can be in a turn, and drop the turn if not."""
        if answer.finish_reason == "failed":
            reason: str | None = "request failed"
        elif not answer.text:
            reason = "empty answer"
        elif self.tokenizer.find_special_token(answer.text):
            reason = "text has a special token"
        else:
            reason = check_answer(
                answer.text,
                "chosen" if side == "chosen" else "rejected",
                finish_reason=answer.finish_reason,
                num_tokens=answer.num_tokens,
                settings=self.settings.filters,
                question=turn.question,
            )
        if reason:
            answered: dict[str, Any] = {side: answer}
            work.drop_turn(dataclasses.replace(turn, **answered), side, f"{side} answer: {reason}")
        return reason is None

    def _finish(self, work: Work, asker: Asker) -> Outcome:
        """Write the record, turns in the order of their chunks or shuffled."""
        failed = asker.failures[work.document_id]
        if not work.turns:
            if not any(reason.startswith("document:") for reason in work.drops):
                work.drops["document: no turn left"] += 1
            return Outcome(None, dict(work.drops), work.dropped, failed)
        turns = sorted(work.turns, key=lambda turn: turn.chunk.index)
        if self.settings.turn_order == "shuffled":
            derive_random(self.settings.seed, work.document_id, "order").shuffle(turns)
        return Outcome(make_record(work, turns, self.describe()), dict(work.drops), work.dropped, failed)

    def _request(self, work: Work, turn: Turn, context: str, name: str) -> Request:
        step = Step(work.document_id, turn.chunk.index, name)
        return Request(step, join_context(context, turn.instruction), self._seed(work, turn.chunk, name))

    def _seed(self, work: Work, chunk: Chunk, step: str) -> int:
        return derive_seed(self.settings.seed, work.document_id, chunk.index, step)

    def _fits(self, message: str, max_new_tokens: int) -> bool:
        return len(self.tokenizer.encode_message(message)) + max_new_tokens <= self.context_length

    def describe(self) -> dict[str, Any]:
        """Return the settings and engines that made a record, as JSON values."""
        return {
            **describe_settings(self.settings),
            "tokenizer": self.tokenizer.fingerprint,
            "context_length": self.context_length,
            "questions_by": self.questions_by,
            "short": self.short.describe(),
            "long": self.long.describe(),
        }
