"""What the generated tasks are made from."""

from __future__ import annotations

import dataclasses
import random
from typing import Protocol

from megatron_longpo.evaluation.sample import CountTokens, Sample
from megatron_longpo.evaluation.text import Haystack
from megatron_longpo.inference.randomness import derive_random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """What samples depend on, next to their task, length and index.

    Attributes:
        count: tokens of the conversation of a user message.
        haystack: text to hide things in.
        seed: seed of every choice.
    """

    count: CountTokens
    haystack: Haystack
    seed: int

    def random(self, *parts: str | int) -> random.Random:
        """Make the generator of one sample."""
        return derive_random(self.seed, *parts)


class Task(Protocol):
    """Makes samples; a sample depends on no other one."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer, for which every prompt leaves room."""
        ...

    def make(self, sources: Sources, length: int, index: int) -> Sample:
        """Make a sample whose prompt and answer have at most ``length`` tokens, and whose prompt has no room for more.

        Raises:
            NoRoomError: even the smallest prompt is too long.
        """
        ...
