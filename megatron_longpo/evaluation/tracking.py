"""Variable tracking (arXiv 2404.06654, section 3.2): one chain of assignments, far apart, among noise. Who holds the value?"""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Sequence

from megatron_longpo.evaluation.sample import NoRoomError, Sample, fill
from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.evaluation.text import NOISE
from megatron_longpo.inference.messages import join_message

NUM_HOPS = 4
"""The paper's: one chain of five variables."""
NAME_LETTERS = 5
EXAMPLE_SENTENCES = 10
INTRODUCTION = (
    "In the text below, variables are set: first one to a number, then others to the value of an earlier variable. "
    "Follow the chain."
)


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Variables that all hold one value, in the order in which they are set."""

    value: str
    names: tuple[str, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> _Chain:
        names: list[str] = []
        while len(names) < NUM_HOPS + 1:
            name = "".join(rng.choices(string.ascii_uppercase, k=NAME_LETTERS))
            if name not in names:
                names.append(name)
        return cls(str(rng.randrange(10_000, 100_000)), tuple(names))

    def statements(self) -> list[str]:
        sources = (self.value, *self.names)
        return [f"SET {name} TO {source}." for name, source in zip(self.names, sources, strict=False)]

    def question(self) -> str:
        return (
            f"Which {len(self.names)} variables hold the value {self.value} at the end of the text? "
            "Reply with their names only, separated by commas."
        )


@dataclasses.dataclass(frozen=True)
class TrackingTask:
    """RULER's task `vt`, with one solved example before it, as there.

    Its answers get 64 tokens; RULER's 30 come after an opening ("... they are:") that it writes for the model.
    """

    name: str = "vt"
    answer_tokens: int = 64

    def make(self, sources: Sources, length: int, index: int) -> Sample:
        """Make a sample; see `sources.Task`."""
        budget = length - self.answer_tokens
        rng = sources.random(self.name, length, index)
        chain, example = _Chain.draw(rng), _Chain.draw(rng)
        example_depths, depths = (sorted(rng.random() for _ in range(NUM_HOPS + 1)) for _ in range(2))
        solved = "An example:\n\n" + join_message(
            _spread(example, example_depths, EXAMPLE_SENTENCES), example.question(), ", ".join(example.names), "The text:"
        )

        def build(units: int, before: str) -> str:
            return join_message(INTRODUCTION, before, _spread(chain, depths, units), chain.question())

        def fit(before: str) -> int:
            return fill(lambda units: sources.count(build(units, before)), budget, least=0)

        try:
            before = solved
            units = fit(before)
        except NoRoomError:  # in the shortest prompts there is room for the task alone
            before = ""
            units = fit(before)
        message = build(units, before)
        return Sample(message=message, question=chain.question(), expected=chain.names, prompt_tokens=sources.count(message))


def _spread(chain: _Chain, depths: Sequence[float], units: int) -> str:
    """Put the statements of a chain, in order, among ``units`` sentences of noise."""
    sentences = [NOISE[place % len(NOISE)] for place in range(units)]
    for number, (statement, depth) in enumerate(zip(chain.statements(), depths, strict=True)):
        sentences.insert(number + round(depth * units), statement)
    return " ".join(sentences)
