"""What a run would do, without a model: how many documents and chunks there are, what is asked, and how much of it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron_longpo.generation.pipeline import Generator
from megatron_longpo.generation.prompts import join_context
from megatron_longpo.generation.run import Job
from megatron_longpo.generation.work import Work
from megatron_longpo.utils.progress import progress_bar

SHOWN_CHARACTERS = 600
QUESTION = "(a question that the model has written)"


@dataclasses.dataclass
class Plan:
    """Counts of a run in which every first try succeeds.

    Attributes:
        documents: documents read.
        used: documents with chunks.
        parts: of these, those of which a part is used, since they are too long for ``seq_length``.
        chunks: chunks of these.
        turns: turns, if every chunk that is drawn gives one.
        prompt_tokens: tokens of all prompts.
        new_tokens: most tokens of all answers.
        drops: documents that are dropped before anything is asked, by reason.
    """

    documents: int = 0
    used: int = 0
    parts: int = 0
    chunks: int = 0
    turns: int = 0
    prompt_tokens: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    new_tokens: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Silent:
    """Stands where an engine would: nothing is asked in a dry run."""

    def describe(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


def dry_run(job: Job, generator: Generator) -> Iterator[str]:
    """Cut every document and count; yields lines for a reader.

    Raises:
        UserError: the documents cannot be read, or the lengths leave no room.
    """
    generator.document_budget()
    plan, shown = Plan(), False
    for document in progress_bar(job.documents(), unit="document", desc="count"):
        work = generator.start(document)
        plan.documents += 1
        plan.drops.update(work.drops)
        if not work.waiting:
            continue
        _count(plan, work, generator)
        if not shown:
            shown = True
            yield from _prompts(work, generator)
    yield from _summary(plan)


def _count(plan: Plan, work: Work, generator: Generator) -> None:
    settings, count = generator.settings, generator.tokenizer.count_tokens
    drawn = work.waiting[: settings.num_turns]
    plan.used += 1
    plan.parts += len(work.long_context) < len(work.document.text)
    plan.chunks += len(work.waiting)
    plan.turns += len(drawn)
    asks_model = not work.document.questions and generator.make_questions is None
    frame = len(generator.tokenizer.encode_message("")) + settings.max_question_tokens
    [window] = count([work.long_context])
    limit = settings.answer_sampling.max_new_tokens
    for chunk in drawn:
        if asks_model:
            message = settings.prompts.ask_questions(work.text_of(chunk), settings.num_questions)
            plan.prompt_tokens["questions"] += len(generator.tokenizer.encode_message(message))
            plan.new_tokens["questions"] += settings.question_sampling.max_new_tokens
        for name, tokens in (("chosen", chunk.num_tokens), ("rejected", window)):
            plan.prompt_tokens[name] += frame + tokens
            plan.new_tokens[name] += limit
        if settings.verify != "off":  # one prompt with one answer, two with both
            plan.prompt_tokens["verifier"] += 3 * (frame + chunk.num_tokens) + 5 * limit


def _prompts(work: Work, generator: Generator) -> Iterator[str]:
    settings, chunk = generator.settings, work.waiting[0]
    instruction = settings.prompts.instruct(settings.lead_ins[0], QUESTION)
    messages = {
        "questions": settings.prompts.ask_questions(work.text_of(chunk), settings.num_questions),
        "chosen": join_context(work.text_of(chunk), instruction),
        "rejected": join_context(work.long_context, instruction),
    }
    yield f"The prompts of document {work.document_id!r}, chunk {chunk.index}, as the chat template renders them:"
    for name, message in messages.items():
        rendered = generator.tokenizer.render_message(message)
        yield f"--- {name}, {len(generator.tokenizer.encode(rendered))} tokens"
        yield _shorten(rendered)
    yield "---"


def _shorten(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return (
        text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
    )


def _summary(plan: Plan) -> Iterator[str]:
    yield f"documents   {plan.used} of {plan.documents} give chunks, {plan.chunks} in all"
    if plan.parts:
        yield f"  {plan.parts} are too long for --seq-length with its turns: a part of each is used"
    yield from (f"  dropped {number} x {reason}" for reason, number in sorted(plan.drops.items()))
    yield f"turns       {plan.turns}, if each first question and answer can be used"
    yield f"{'tokens':<12}{'of prompts':>16}{'of answers, most':>20}"
    for name, tokens in plan.prompt_tokens.items():
        yield f"  {name:<10}{tokens:>16,}{plan.new_tokens[name]:>20,}"
    yield f"  {'all':<10}{plan.prompt_tokens.total():>16,}{plan.new_tokens.total():>20,}"
