"""Loss types written down once more, from their papers: float64, Hugging Face models, whole sequences, one answer at a time.

Shares no code with the product but the pairs that it is given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from megatron_longpo.data.pair import PreferencePair, Side
from tests.support.oracle import side_logps


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss type with its settings, as the formulas name them."""

    loss_type: str
    beta: float = 0.1
    per_turn: bool = False
    smoothing: float = 0.0
    gamma: float = 0.5


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer, or all answers of a side as one: log-probs under policy and reference, and tokens."""

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: int


def answers_of(policy: Any, reference: Any, side: Side, *, needs_reference: bool) -> list[Answer]:
    """The answers of a chat, each given everything before it."""
    ours = side_logps(policy, side)
    with torch.no_grad():
        theirs = side_logps(reference, side) if needs_reference else ours * torch.nan
    return [Answer(ours[turn], theirs[turn], end - start) for turn, (start, end) in enumerate(side.answer_spans)]


def as_one(answers: list[Answer]) -> Answer:
    """Several answers as if they were one."""
    return Answer(sum(a.policy for a in answers), sum(a.reference for a in answers), sum(a.tokens for a in answers))


def neg_log_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """``-log(1 / (1 + exp(-x)))``."""
    return torch.log1p(torch.exp(-x))


def loss_of(case: Case, chosen: Answer, rejected: Answer) -> torch.Tensor:
    """One pair's preference loss."""
    beta = case.beta
    ratio_c, ratio_r = chosen.policy - chosen.reference, rejected.policy - rejected.reference
    if case.loss_type == "hinge":
        return torch.relu(1 - beta * (ratio_c - ratio_r))
    if case.loss_type == "ipo":
        return (ratio_c / chosen.tokens - ratio_r / rejected.tokens - 1 / (2 * beta)) ** 2
    if case.loss_type == "simpo":
        x = beta / chosen.tokens * chosen.policy - beta / rejected.tokens * rejected.policy - case.gamma
        return (1 - case.smoothing) * neg_log_sigmoid(x) + case.smoothing * neg_log_sigmoid(-x)
    raise AssertionError(case.loss_type)


def preference(case: Case, policy: Any, reference: Any, pair: PreferencePair) -> torch.Tensor:
    """The preference term of a document, whose turns are one pair of answers or a pair each."""
    needs_reference = case.loss_type in ("hinge", "ipo")
    ours = [side_logps(policy, side) for side in (pair.chosen, pair.rejected)]
    turns = []
    for turn, shorts in enumerate(zip(pair.short_chosen, pair.short_rejected, strict=True)):
        refs = [answers_of(policy, reference, short, needs_reference=needs_reference)[0].reference for short in shorts]
        lengths = [end - start for start, end in (pair.chosen.answer_spans[turn], pair.rejected.answer_spans[turn])]
        turns.append([Answer(ours[side][turn], refs[side], lengths[side]) for side in range(2)])
    if not case.per_turn:
        turns = [[as_one([turn[side] for turn in turns]) for side in range(2)]]
    return torch.stack([loss_of(case, *sides) for sides in turns]).mean()
