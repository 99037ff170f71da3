"""A plan and a model to the requests that it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

from megatron_longpo.evaluation.answering import Request, hash_message, identify
from megatron_longpo.evaluation.infinitebench import make_sample
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.questions import OwnQuestion
from megatron_longpo.evaluation.reading import ReadingTask
from megatron_longpo.evaluation.sample import CountTokens, NoRoomError, Sample
from megatron_longpo.evaluation.sources import Sources, Task
from megatron_longpo.evaluation.tokens import PromptTokens
from megatron_longpo.utils.errors import UserError

GENERATORS = 1
"""Version of wordings and choices: raised by a change of the prompts, whose answers are then asked for again."""
QUESTIONS_TOGETHER = 32
"""Questions of the user's that count as one sample of a group: they are short and many."""
WORTH_SHARING = 4096
"""Tokens that questions about one text read of it, together, from which on it is read once for all of them."""


def ruler_requests(plan: Plan, model: Model) -> list[Request]:
    """List the generated samples, the shortest first.

    Raises:
        UserError: at the shortest length a task does not fit, or has too few questions.
    """
    sources = Sources(count=PromptTokens(model.tokenizer).count, haystack=plan.haystack, seed=plan.seed)
    shortest, last = plan.lengths[0], plan.samples - 1
    for task in plan.generated:  # now rather than in the middle of a run
        _made(functools.partial(task.make, sources, shortest, last), task.name, shortest, task.answer_tokens)
    identities = {task.name: _identify_task(plan, model, task) for task in plan.generated}
    return [
        Request(
            task=task.name,
            length=length,
            index=index,
            identity=identities[task.name],
            company=f"{task.name}/{length}",
            answer_tokens=task.answer_tokens,
            make=functools.partial(task.make, sources, length, index),
        )
        for length in plan.lengths
        for task in plan.generated
        for index in range(plan.samples)
    ]


def book_requests(plan: Plan, model: Model) -> list[Request]:
    """List InfiniteBench's samples, those about one book side by side.

    Raises:
        UserError: a question does not fit without its book.
    """
    tokens, common = PromptTokens(model.tokenizer), _identify(plan, model)
    requests = []
    for file in plan.books:
        budget = plan.book_length - file.task.answer_tokens
        for question in file.questions:
            make = functools.partial(make_sample, question, tokens.count, tokens.starts, budget)
            requests.append(
                Request(
                    task=file.task.name,
                    length=plan.book_length,
                    index=question.index,
                    identity=identify({**common, "question": [question.book, question.instruction, question.expected]}),
                    company=f"{file.task.name}/{question.book}",
                    answer_tokens=file.task.answer_tokens,
                    make=functools.partial(_made, make, file.task.name, plan.book_length, file.task.answer_tokens),
                )
            )
    return requests


def question_requests(plan: Plan, model: Model) -> list[Request]:
    """List the user's own questions in the order in which they are cheap to ask; see `_companies`."""
    tokens, common = PromptTokens(model.tokenizer), _identify(plan, model)
    requests = []
    for task in plan.questions:
        for company, questions in _companies(task.file.questions, tokens.count):
            for question, length in questions:
                message = question.message
                requests.append(
                    Request(
                        task=task.file.name,
                        length=length + task.answer_tokens,
                        index=question.index,
                        identity=identify({**common, "message": hash_message(message), "answer_tokens": task.answer_tokens}),
                        company=f"{task.file.name}/{company}",
                        answer_tokens=task.answer_tokens,
                        make=functools.partial(_own_sample, question, tokens.count),
                        together=QUESTIONS_TOGETHER,
                    )
                )
    return requests


def _companies(questions: Sequence[OwnQuestion], count: CountTokens) -> Iterator[tuple[str, Sequence[tuple[OwnQuestion, int]]]]:
    """Part questions into those that are answered together, with the tokens of each prompt, counted text by text.

    Questions about a long text are company of their own, so that it is read once. All others are together, the shortest prompts
    first: neighbours share batches, and batches of one length waste least.
    """
    about: dict[str, list[OwnQuestion]] = {}
    for question in questions:
        about.setdefault(question.context, []).append(question)
    others, frame = [], count("")
    for number, (context, several) in enumerate(about.items()):
        read = count(context) - frame
        measured = [(question, read + count(question.text)) for question in several]
        if len(several) > 1 and read * len(several) >= WORTH_SHARING:
            yield str(number), measured
        else:
            others += measured
    yield "others", sorted(others, key=lambda one: (one[1], one[0].index))


def _own_sample(question: OwnQuestion, count: CountTokens) -> Sample:
    message = question.message
    return Sample(message=message, question=question.text, expected=question.answers, prompt_tokens=count(message))


def _made(make: Callable[[], Sample], task: str, length: int, answer_tokens: int) -> Sample:
    try:
        return make()
    except NoRoomError as error:
        raise UserError(
            f"{task}: does not fit into {length} tokens; its shortest prompt has {error.needed}, and its answer may have "
            f"{answer_tokens}: give at least {error.needed + answer_tokens}, or leave the task out"
        ) from None


def _identify(plan: Plan, model: Model) -> dict[str, object]:
    return {
        "generators": GENERATORS,
        "temperature": plan.temperature,
        "tokenizer": model.tokenizer.fingerprint,
        "engine": model.engine.describe(),
        "draws": plan.seed if plan.temperature else None,
    }


def _identify_task(plan: Plan, model: Model, task: Task) -> str:
    source = task.source.sha256 if isinstance(task, ReadingTask) else plan.haystack.sha256
    return identify({**_identify(plan, model), "seed": plan.seed, "source": source})
