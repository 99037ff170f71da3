"""Needles in a haystack: RULER's eight retrieval tasks (arXiv 2404.06654, section 3.1), in words of our own.

Names have access numbers, hidden as one sentence each. The tasks differ in what they are hidden in (a noise that repeats, a
text, or other needles), in how many there are, and in how many are asked for.
"""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Sequence
from typing import Literal

from megatron_longpo.evaluation.sample import Needle, Sample, fill
from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.evaluation.text import NOISE, draw_name
from megatron_longpo.inference.messages import join_message

GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole part, are spread evenly over 0..1, however many are taken."""
WHAT = {"numbers": "access number", "uuids": "access code"}


@dataclasses.dataclass(frozen=True)
class _Hidden:
    """A needle before it has its place; ``depth`` is where it is meant to stand."""

    sentence: str
    value: str
    depth: float
    asked: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleTask:
    """One of the eight.

    Attributes:
        name: RULER's.
        haystack: what surrounds the needles.
        names: what has a value.
        values: what is asked for.
        num_names: names in all.
        num_values: values that each name has.
        num_asked: names that are asked for.
        answer_tokens: most tokens of an answer, RULER's.
    """

    name: str
    haystack: Literal["noise", "text", "needles"]
    names: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    num_names: int = 1
    num_values: int = 1
    num_asked: int = 1
    answer_tokens: int = 128

    def make(self, sources: Sources, length: int, index: int) -> Sample:
        """Make a sample; see `sources.Task`."""
        rng = sources.random(self.name, length, index)
        drawn = _Drawn(self, sources, rng)
        hidden = self._hide(sources, drawn, length, index)
        asked = list(dict.fromkeys(drawn.names[: self.num_asked]))
        question = self._ask(asked)
        start = rng.randrange(len(sources.haystack.words))

        def build(units: int) -> tuple[str, tuple[Needle, ...]]:
            if self.haystack == "text":
                text, needles = _place_in_text(sources, start, units, hidden)
            else:
                hay = drawn.others(units) if self.haystack == "needles" else [NOISE[i % len(NOISE)] for i in range(units)]
                text, needles = _place_in_list(hay, hidden, "\n" if self.haystack == "needles" else " ")
            return join_message(self._introduce(), text, question), needles

        units = fill(lambda number: sources.count(build(number)[0]), length - self.answer_tokens, least=0)
        message, needles = build(units)
        return Sample(
            message=message,
            question=question,
            expected=tuple(needle.value for needle in hidden if needle.asked),
            prompt_tokens=sources.count(message),
            needles=needles,
        )

    def _hide(self, sources: Sources, drawn: _Drawn, length: int, index: int) -> list[_Hidden]:
        """Draw the needles. Those that are asked for stand at depths that cover the text evenly over the samples."""
        offset = sources.random(self.name, length, "depths").random()
        asked = self.num_asked * self.num_values
        hidden: list[_Hidden] = []
        for number in range(self.num_names):
            name = drawn.name()
            for _ in range(self.num_values):
                is_asked = number < self.num_asked
                even = (offset + (index * asked + len(hidden)) * GOLDEN) % 1
                depth = even if is_asked else drawn.rng.random()
                value = drawn.value()
                hidden.append(_Hidden(self._state(name, value), value, depth, is_asked))
        return hidden

    def _introduce(self) -> str:
        what = WHAT[self.values]
        return (
            f"Somewhere in the text below it says of one or several names which {what} each of them has. Remember every {what}: "
            "you will be asked about it after the text."
        )

    def _state(self, name: str, value: str) -> str:
        return f"The {WHAT[self.values]} of {name} is {value}."

    def _ask(self, names: Sequence[str]) -> str:
        what = WHAT[self.values]
        if len(names) == 1 and self.num_values == 1:
            return f"According to the text, what is the {what} of {names[0]}? Reply with the {what}."
        several = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        return f"According to the text, what are all the {what}s of {several}? Reply with the {what}s, separated by commas."


class _Drawn:
    """Names and values of one sample, all different, and needles beyond those that are asked for, as many as are wanted."""

    def __init__(self, task: NeedleTask, sources: Sources, rng: random.Random) -> None:
        self.rng = rng
        self.names: list[str] = []
        self._task, self._sources = task, sources
        self._taken: set[str] = set()
        self._others: list[str] = []
        self._other_rng = random.Random(rng.getrandbits(64))

    def name(self) -> str:
        """Draw a name."""
        self.names.append(self._new(self._task.names, self.rng))
        return self.names[-1]

    def value(self) -> str:
        """Draw a value."""
        return self._new(self._task.values, self.rng)

    def others(self, number: int) -> list[str]:
        """Return the first ``number`` of further needles."""
        while len(self._others) < number:
            name, value = (self._new(kind, self._other_rng) for kind in (self._task.names, self._task.values))
            self._others.append(self._task._state(name, value))
        return self._others[:number]

    def _new(self, kind: str, rng: random.Random) -> str:
        while True:
            if kind == "words":
                drawn = draw_name(self._sources.haystack, rng)
            elif kind == "numbers":
                drawn = str(rng.randrange(10**6, 10**7))
            else:
                drawn = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            if drawn not in self._taken:
                self._taken.add(drawn)
                return drawn


def _place_in_text(sources: Sources, start: int, count: int, hidden: Sequence[_Hidden]) -> tuple[str, tuple[Needle, ...]]:
    """Put needles between the sentences of ``count`` words from ``start`` on, each before the one that its depth falls into."""
    haystack = sources.haystack
    parts: list[str | _Hidden] = []
    place = start
    for needle in sorted(hidden, key=lambda needle: needle.depth):
        target = max(place, haystack.sentence_before(start + round(needle.depth * count)))
        if target > place:
            parts.append(" ".join(haystack.take(place, target - place)))
        parts.append(needle)
        place = target
    if rest := start + count - place:
        parts.append(" ".join(haystack.take(place, rest)))
    return _join(parts, " ")


def _place_in_list(hay: Sequence[str], hidden: Sequence[_Hidden], separator: str) -> tuple[str, tuple[Needle, ...]]:
    """Put needles between sentences."""
    parts: list[str | _Hidden] = []
    place = 0
    for needle in sorted(hidden, key=lambda needle: needle.depth):
        target = round(needle.depth * len(hay))
        parts += [*hay[place:target], needle]
        place = target
    return _join([*parts, *hay[place:]], separator)


def _join(parts: Sequence[str | _Hidden], separator: str) -> tuple[str, tuple[Needle, ...]]:
    """Join hay and needles, and tell where the needles came to stand."""
    sentences = [part if isinstance(part, str) else part.sentence for part in parts]
    total = len(separator.join(sentences))
    offset, needles = 0, []
    for part, sentence in zip(parts, sentences, strict=True):
        if not isinstance(part, str):
            depth = offset / max(1, total - len(sentence))
            needles.append(Needle(value=part.value, depth=round(depth, 4), asked=part.asked))
        offset += len(sentence) + len(separator)
    return separator.join(sentences), tuple(needles)


NEEDLE_TASKS = (
    NeedleTask(name="niah_single_1", haystack="noise"),
    NeedleTask(name="niah_single_2", haystack="text"),
    NeedleTask(name="niah_single_3", haystack="text", values="uuids"),
    NeedleTask(name="niah_multikey_1", haystack="text", num_names=4),
    NeedleTask(name="niah_multikey_2", haystack="needles"),
    NeedleTask(name="niah_multikey_3", haystack="needles", names="uuids", values="uuids"),
    NeedleTask(name="niah_multivalue", haystack="text", num_values=4),
    NeedleTask(name="niah_multiquery", haystack="text", num_names=4, num_asked=4),
)
