"""Ask an engine only what the journal does not know yet."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable, Sequence

from megatron_longpo.inference.engine import Completion, Engine
from megatron_longpo.inference.journal import Journal
from megatron_longpo.inference.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Step:
    """A request's place in the work.

    Attributes:
        document_id: the document.
        chunk: index of the chunk that it is about.
        name: what is asked for: ``questions``, ``chosen``, ``rejected``, ...
    """

    document_id: str
    chunk: int
    name: str


@dataclasses.dataclass(frozen=True)
class Request:
    """A message and the seed of its answer, with its place."""

    step: Step
    message: str
    seed: int


@dataclasses.dataclass
class Usage:
    """What a run has asked for; counts of this run, not of the ones that it continues."""

    requests: int = 0
    known: int = 0
    failed: int = 0
    tokens: int = 0


class Asker:
    """Engines behind a journal: an answer that has arrived is on disk before anything is made of it, and not asked for again.

    An entry's key is the step and a hash of all that the answer depends on: message, sampling, seed and engine. Requests that
    failed are not kept: another run asks them again.
    """

    def __init__(self, journal: Journal) -> None:
        """Take the journal; ``usage`` and ``failures`` (requests without an answer, by document) are counted from here on."""
        self.usage = Usage()
        self.failures: collections.Counter[str] = collections.Counter()
        self.first_error = ""
        self._journal = journal
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def complete(self, engine: Engine, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Answer every request, in their order.

        Raises:
            UserError: the engine gives up.
        """
        keys = [_key(request, dataclasses.asdict(sampling), engine.describe()) for request in requests]
        answers = {place: Completion(**self._journal.read(key)) for place, key in enumerate(keys) if key in self._journal}
        self._count(known=len(answers))
        messages, seeds = [request.message for request in requests], [request.seed for request in requests]
        for found in engine.complete(messages, sampling, seeds, done=frozenset(answers)):
            group = {place: answer for place, answer in found.items() if place not in answers}  # a batch may have known rows
            good = {place: answer for place, answer in group.items() if answer.finish_reason != "failed"}
            if good:
                self._journal.append({keys[place]: dataclasses.asdict(answer) for place, answer in good.items()})
            for place in group.keys() - good.keys():
                self._fail(requests[place].step, group[place].error)
            self._count(requests=len(group), tokens=sum(answer.num_tokens for answer in group.values()))
            answers |= group
        return [answers[place] for place in range(len(requests))]

    def score(self, engine: Engine, request: Request, answer: str) -> float | None:
        """Score an answer to a request's message; see `Engine.score`.

        Raises:
            UserError: the engine cannot.
        """
        key = _key(request, answer, engine.describe())
        if key not in self._journal:
            score = engine.score(request.message, answer)
            self._count(requests=1)
            if score is None:
                self._fail(request.step, "no log-probs of this prompt")
                return None
            self._journal.append({key: score if math.isfinite(score) else None})
        found: float | None = self._journal.read(key)
        return found

    def once(self, request: Request, how: object, make: Callable[[], list[str]]) -> list[str]:
        """Return what ``make`` made of a request, which it is asked for once; ``how`` is all else that it depends on.

        It is never called in two threads at a time: a function of a user's need not know that there are several.
        """
        key = _key(request, how, None)
        with self._making:
            if key not in self._journal:
                self._journal.append({key: make()})
        made: list[str] = self._journal.read(key)
        return made

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)

    def _fail(self, step: Step, error: str) -> None:
        self._count(failed=1)
        self.failures[step.document_id] += 1  # a document is worked on by one thread
        self.first_error = self.first_error or f"{step.name} of chunk {step.chunk} of {step.document_id!r}: {error}"


def _key(request: Request, how: object, engine: object) -> str:
    content = json.dumps([request.message, request.seed, how, engine], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    return f"{request.step.document_id}/{request.step.chunk}/{request.step.name}/{digest}"
