"""One question to a model, and what a right answer holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle:
    """A statement hidden in a text.

    Attributes:
        value: what it tells.
        depth: where it stands, as a share of the text's characters: 0 at the start, 1 at the end.
        asked: whether the question is about it.
    """

    value: str
    depth: float
    asked: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt with its right answers.

    Attributes:
        message: the whole user message.
        question: the part of it that asks.
        expected: right answers; the task says whether all or any of them are wanted.
        prompt_tokens: tokens of the rendered conversation.
        needles: what is hidden in it, in the order of the text.
        cut: whether text was left out to make it fit.
    """

    message: str
    question: str
    expected: tuple[str, ...]
    prompt_tokens: int
    needles: tuple[Needle, ...] = ()
    cut: bool = False


class NoRoomError(Exception):
    """Not even the smallest prompt of a task fits; ``needed`` is its number of tokens."""

    def __init__(self, needed: int) -> None:  # noqa: D107
        super().__init__(needed)
        self.needed = needed


CountTokens = Callable[[str], int]
"""Tokens of the conversation that a user message makes, template included."""


def fill(count_units: Callable[[int], int], budget: int, *, least: int, most: int | None = None) -> int:
    """Find a number of units that fits while one more does not (or that is ``most``).

    Tokens grow almost evenly with units, so interpolation finds it in a few counts even in prompts of millions of tokens.

    Args:
        count_units: tokens of a prompt of so many units.
        budget: most tokens.
        least: fewest units.
        most: most units.

    Raises:
        NoRoomError: ``least`` units do not fit.
    """
    low, at_low = least, count_units(least)
    if at_low > budget:
        raise NoRoomError(at_low)
    if low == most:
        return low
    first, probe = (low, at_low), low + 16
    high: int | None = None
    at_high = 0
    for step in range(200):
        if most is not None:
            probe = min(probe, most)
        tokens = count_units(probe)
        if tokens > budget:
            high, at_high = probe, tokens
        else:
            low, at_low = probe, tokens
        if low == most or (high is not None and high - low == 1):
            return low
        if high is None:
            rate = (at_low - first[1]) / (low - first[0])
            grow = (budget - at_low) / rate if rate > 0 else low
            probe = low + max(1, min(int(grow) + 1, 64 * low + 64))
        elif step < 20:
            rate = (at_high - at_low) / (high - low)
            probe = min(max(low + int((budget - at_low) / rate), low + 1), high - 1)
        else:  # an uneven text: halve
            probe = (low + high) // 2
    raise AssertionError("the distance is halved at each step")
