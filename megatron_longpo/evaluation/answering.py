"""Samples to answers, each kept in a journal as soon as it is there."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megatron_longpo.evaluation.sample import Sample
from megatron_longpo.inference.engine import Engine
from megatron_longpo.inference.journal import Journal
from megatron_longpo.inference.randomness import derive_seed
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.inference.threads import in_threads
from megatron_longpo.utils.progress import progress_bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A sample that will be made when it is asked, with its place.

    Attributes:
        task: name of the task.
        length: tokens of prompt and answer together, at most.
        index: number of the sample in its task and length.
        identity: hash of everything else that the answer depends on: generators, seed, texts, tokenizer, model, sampling.
        company: neighbours of one company are answered together: their prompts have one length, or one text.
        answer_tokens: most tokens of the answer.
        make: makes the sample.
        together: so many samples of the company are worked on where an engine's groups have one.
    """

    task: str
    length: int
    index: int
    identity: str
    company: str
    answer_tokens: int
    make: Callable[[], Sample]
    together: int = 1

    @property
    def key(self) -> str:
        """Where the journal keeps the answer."""
        return f"{self.task}/{self.length}/{self.index}/{self.identity}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a sample, as the journal keeps it. The prompt is kept by its hash: its generator makes it again.

    Attributes:
        answer: the model's, without special tokens.
        finish_reason: ``stop`` or ``length``.
        answer_tokens: tokens generated.
        prompt_tokens: tokens read.
        prompt_sha256: hash of the user message.
        question: the part of the message that asks.
        expected: right answers.
        needles: value, depth and whether it was asked for, of each.
        cut: whether text had to be left out of the prompt.
    """

    answer: str
    finish_reason: str
    answer_tokens: int
    prompt_tokens: int
    prompt_sha256: str
    question: str
    expected: Sequence[str]
    needles: Sequence[Sequence[Any]] = ()
    cut: bool = False


@dataclasses.dataclass
class Failures:
    """Requests that got no answer; they are asked again by the next run."""

    number: int = 0
    first: str = ""


def answer_all(
    requests: Sequence[Request], engine: Engine, journal: Journal, sampling: Sampling, seed: int, label: str
) -> Failures:
    """Ask for every answer that the journal does not have.

    Args:
        requests: in the order in which they are asked; neighbours of one company together.
        engine: the model.
        journal: keeps the answers under the requests' keys.
        sampling: how tokens are drawn; the length of an answer is its request's.
        seed: of the draws, if there are any.
        label: what the bar is called.

    Raises:
        UserError: a sample cannot be made, or the engine gives up; what was answered before is kept.
    """
    failures = Failures()
    if not requests:
        return failures

    def ask(group: Sequence[Request]) -> None:
        samples = [request.make() for request in group]
        done = frozenset(place for place, request in enumerate(group) if request.key in journal)
        limited = dataclasses.replace(sampling, max_new_tokens=group[0].answer_tokens)
        seeds = [derive_seed(seed, request.task, request.length, request.index, "answer") for request in group]
        messages = [sample.message for sample in samples]
        for answers in engine.complete(messages, limited, seeds, done=done):
            kept = {}
            for place, completion in answers.items():
                if place in done:  # a batch may have known rows; what is known stands
                    continue
                if completion.finish_reason == "failed":
                    failures.number += 1
                    failures.first = failures.first or f"{group[place].key.rpartition('/')[0]}: {completion.error}"
                else:
                    kept[group[place].key] = dataclasses.asdict(_describe(samples[place], completion))
            if kept:
                journal.append(kept)

    total = sum(request.length for request in requests)
    waiting = sum(request.length for request in requests if request.key not in journal)
    with progress_bar(total=total, initial=total - waiting, unit="token", unit_scale=True, desc=label) as bar:
        for group, _ in in_threads(ask, _groups(requests, engine.group_size, journal), engine.concurrency):
            bar.update(sum(request.length for request in group))
            bar.set_postfix_str(f"{group[0].task} at {group[0].length}")
    return failures


def _groups(requests: Sequence[Request], size: int, journal: Journal) -> Iterator[Sequence[Request]]:
    """Neighbours of one company, ``size`` (times `Request.together`) at a time, without the groups that are done.

    A group is asked as a whole even if parts of it are: an engine's batches do not depend on where a run was interrupted.
    """
    for (_, together), company in itertools.groupby(requests, key=lambda request: (request.company, request.together)):
        while group := list(itertools.islice(company, size * together)):
            if not all(request.key in journal for request in group):
                yield group


def read_answer(journal: Journal, request: Request) -> Answer:
    """Read an answer that the journal has."""
    return Answer(**journal.read(request.key))


def hash_message(message: str) -> str:
    """Hash a user message."""
    return hashlib.sha256(message.encode("utf-8", "surrogatepass")).hexdigest()


def _describe(sample: Sample, completion: Any) -> Answer:
    return Answer(
        answer=completion.text,
        finish_reason=completion.finish_reason,
        answer_tokens=completion.num_tokens,
        prompt_tokens=sample.prompt_tokens,
        prompt_sha256=hash_message(sample.message),
        question=sample.question,
        expected=list(sample.expected),
        needles=[[needle.value, needle.depth, needle.asked] for needle in sample.needles],
        cut=sample.cut,
    )


def identify(values: Mapping[str, Any]) -> str:
    """Hash what answers depend on."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:24]
