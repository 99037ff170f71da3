"""What a run asks its model while it trains: RULER's tasks that have one answer, and questions of the user's own."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.answer_packing import AnswerItem
from megatron_longpo.evaluation.naming import name_paths
from megatron_longpo.evaluation.needles import NEEDLE_TASKS, NeedleTask
from megatron_longpo.evaluation.plan import SUITES, TASK_NAMES
from megatron_longpo.evaluation.questions import QuestionFile, load_questions
from megatron_longpo.evaluation.ruler import QA_TASKS
from megatron_longpo.evaluation.sample import NoRoomError
from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.evaluation.text import load_haystack
from megatron_longpo.evaluation.tokens import PromptTokens
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.training.prompt_encoder import PromptEncoder
from megatron_longpo.utils.errors import UserError

QUESTIONS = "questions"
GROUP = "niah"
ONE_ANSWER = {task.name: task for task in NEEDLE_TASKS if task.num_asked * task.num_values == 1}
NLL = "nll"


@dataclasses.dataclass(frozen=True)
class EvalSample:
    """A prompt with its right answers, which is made when it is wanted.

    Attributes:
        labels: the scores that it counts in, such as ``niah/2048``.
        size: tokens of prompt and answer, at most.
        shared: names the text that it has in common with others.
        own: those of its tokens that are not the shared text's.
        make: makes it.
    """

    labels: tuple[str, ...]
    size: int
    shared: str
    own: int
    make: Callable[[], AnswerItem]


@dataclasses.dataclass(frozen=True)
class Longest:
    """Most tokens that a prompt and its answer may have: the run's sequences, and the model's positions."""

    seq_length: int
    positions: int

    def check(self, where: str, tokens: int) -> None:
        """Refuse a prompt and its answer that have more.

        Raises:
            UserError: they do.
        """
        flag, limit = min(
            ("--seq-length", self.seq_length), ("--max-position-embeddings", self.positions), key=lambda one: one[1]
        )
        if tokens > limit:
            raise UserError(
                f"{where}: prompt and answer have up to {tokens} tokens, {flag} is {limit}; raise it, or leave this out"
            )


def open_eval_tasks(config: RunConfig, architecture: ModelArchitecture) -> tuple[EvalSample, ...]:
    """Read what ``--eval-tasks`` names.

    Args:
        config: the run's configuration.
        architecture: the model's.

    Returns:
        The samples in a fixed order; none if no task is named.

    Raises:
        UserError: a task is unknown, has several right answers, or is longer than the run's sequences; a file cannot be read; or
            the checkpoint has no tokenizer to ask with.
    """
    settings = config.evaluation
    if not settings.eval_tasks:
        return ()
    longest = Longest(config.data.seq_length, architecture.max_position_embeddings)
    lengths, files = _parse(settings.eval_tasks)
    for name, length in lengths:
        longest.check(f"--eval-tasks {name}:{length}", length)
    flag = f"--eval-tasks {QUESTIONS}:"
    named = name_paths(flag, files, lambda path: path.stem, "mine", reserved=(*SUITES, *TASK_NAMES))
    questions = [(path, load_questions(name, path, flag=flag)) for name, path in named]
    encoder = PromptEncoder.load(str(config.model.pretrained_checkpoint), architecture.vocab_size)
    samples = list(_ruler_samples(lengths, config, encoder)) if lengths else []
    for path, file in questions:
        samples += _own_samples(file, path, settings.eval_tasks_samples, longest, encoder)
    return tuple(samples)


def divide(samples: Sequence[EvalSample], ranks: int) -> list[list[int]]:
    """Divide samples between data-parallel ranks: those of one text together, the longest texts first to the idlest rank.

    Returns:
        The samples' numbers by rank, in their order.
    """
    units: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        units.setdefault(sample.shared, []).append(number)

    def work(unit: list[int]) -> int:
        first = samples[unit[0]]
        return first.size - first.own + sum(samples[number].own for number in unit)

    loads, shares = [0] * ranks, [list[list[int]]() for _ in range(ranks)]
    for unit in sorted(units.values(), key=lambda unit: (-work(unit), unit[0])):
        idlest = loads.index(min(loads))
        loads[idlest] += work(unit)
        shares[idlest].append(unit)
    return [[number for unit in sorted(share) for number in unit] for share in shares]


def _parse(values: Sequence[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """Part ``NAME:LENGTH,...`` from ``questions:[NAME=]FILE``."""
    lengths: list[tuple[str, int]] = []
    files = []
    for value in values:
        name, _, rest = value.partition(":")
        if name == QUESTIONS:
            if not rest:
                raise UserError(f"--eval-tasks {value}: names no file; give {QUESTIONS}:FILE.jsonl")
            files.append(rest)
            continue
        _check_name(name, value)
        parts = rest.split(",")
        if not all(re.fullmatch("[1-9][0-9]{0,8}", part) for part in parts):
            raise UserError(f"--eval-tasks {value}: give lengths in tokens after the name, as in {name}:2048,4096")
        lengths += [(name, int(part)) for part in parts]
    return list(dict.fromkeys(lengths)), files


def _check_name(name: str, value: str) -> None:
    if name == GROUP or name in ONE_ANSWER:
        return
    choices = ", ".join((GROUP, *ONE_ANSWER, f"{QUESTIONS}:FILE.jsonl"))
    if name not in SUITES and name not in TASK_NAMES:
        raise UserError(f"--eval-tasks {value}: {name!r} is none of {choices}")
    reason = "is made of another file" if name in (*QA_TASKS, "qa") else "has no one right answer that a reply begins with"
    raise UserError(
        f"--eval-tasks {value}: {name} {reason}, so tools/evaluate.py measures it; during training there are {choices}"
    )


def _ruler_samples(lengths: Sequence[tuple[str, int]], config: RunConfig, encoder: PromptEncoder) -> Iterator[EvalSample]:
    """Samples of RULER's tasks: those of tools/evaluate.py with the same seed and haystack."""
    settings = config.evaluation
    given = settings.eval_tasks_haystack
    haystack = load_haystack(None if given is None else Path(given), "--eval-tasks-haystack")
    sources = Sources(count=PromptTokens(encoder.tokenizer).count, haystack=haystack, seed=config.training.seed)
    labels: dict[tuple[str, int], list[str]] = {}
    for name, length in lengths:
        for member in ONE_ANSWER if name == GROUP else (name,):
            labels.setdefault((member, length), []).append(f"{name}/{length}")
    for (name, length), names in labels.items():
        task = ONE_ANSWER[name]
        try:
            task.make(sources, length, 0)
        except NoRoomError as error:
            raise UserError(
                f"--eval-tasks {name}:{length}: its shortest prompt has {error.needed} tokens, and its answer may have "
                f"{task.answer_tokens}; give at least {error.needed + task.answer_tokens}"
            ) from None
        for index in range(settings.eval_tasks_samples):
            make = functools.partial(_make_sample, task, sources, length, index, encoder)
            yield EvalSample(labels=tuple(names), size=length, shared=f"{name}/{length}/{index}", own=length, make=make)


def _make_sample(task: NeedleTask, sources: Sources, length: int, index: int, encoder: PromptEncoder) -> AnswerItem:
    sample = task.make(sources, length, index)
    return encoder.encode(sample.message, sample.expected, ended=False)


def _own_samples(file: QuestionFile, path: Path, most: int, longest: Longest, encoder: PromptEncoder) -> Iterator[EvalSample]:
    """The first questions of each group of a file.

    Raises:
        UserError: one is too long, or a group has a name that is taken.
    """
    taken: collections.Counter[str | None] = collections.Counter()
    contexts: dict[str, int] = {}
    for question in file.questions:
        if question.group == NLL:
            raise UserError(f"{path}:{question.index + 1}: group: {NLL!r} is how scores are called; name it otherwise")
        taken[question.group] += 1
        if taken[question.group] > most:
            continue
        answers = [answer.strip() for answer in question.answers]
        item = encoder.encode(question.message, answers, ended=True)
        longest.check(f"{path}:{question.index + 1}: question", item.length)
        text = contexts.setdefault(question.context, len(contexts))
        own = len(encoder.tokenizer.encode(question.text)) if question.context else item.length
        yield EvalSample(
            labels=(file.name,) if question.group is None else (file.name, f"{file.name}/{question.group}"),
            size=item.length,
            shared=f"{file.name}/{text}" if question.context else f"{file.name}//{question.index}",
            own=own,
            make=functools.partial(_as_is, item),
        )


def _as_is(item: AnswerItem) -> AnswerItem:
    return item
