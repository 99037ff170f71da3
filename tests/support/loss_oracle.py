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
    alpha: float | None = None


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


def log_odds(answer: Answer) -> torch.Tensor:
    """ORPO's, of the geometric mean of the tokens' probabilities."""
    mean = torch.exp(answer.policy / answer.tokens)
    return torch.log(mean / (1 - mean))


def loss_of(case: Case, chosen: Answer, rejected: Answer) -> torch.Tensor:
    """One pair's preference loss."""
    beta = case.beta
    ratio_c, ratio_r = chosen.policy - chosen.reference, rejected.policy - rejected.reference
    if case.loss_type == "hinge":
        return torch.relu(1 - beta * (ratio_c - ratio_r))
    if case.loss_type == "ipo":
        return (ratio_c / chosen.tokens - ratio_r / rejected.tokens - 1 / (2 * beta)) ** 2
    if case.loss_type == "solo-orpo":
        return beta * neg_log_sigmoid(log_odds(chosen) - log_odds(rejected))
    if case.loss_type in ("simpo", "solo-simpo"):
        x = beta / chosen.tokens * chosen.policy - beta / rejected.tokens * rejected.policy - case.gamma
    else:
        assert case.loss_type == "solo-dpo"
        x = beta * (ratio_c - ratio_r)
    return (1 - case.smoothing) * neg_log_sigmoid(x) + case.smoothing * neg_log_sigmoid(-x)


def reward_of(case: Case, answer: Answer) -> torch.Tensor:
    """The reward that SoLoPO aligns."""
    if case.loss_type == "solo-dpo":
        return case.beta * (answer.policy - answer.reference)
    return log_odds(answer) if case.loss_type == "solo-orpo" else case.beta / answer.tokens * answer.policy


def answer_divergence(policy: Any, reference: Any, long: Side, turn: int, short: Side) -> torch.Tensor:
    """Sum over an answer's tokens of KL(policy on the long chat || reference on the short one), from whole logits."""

    def distributions(model: Any, side: Side, span: tuple[int, int]) -> torch.Tensor:
        tokens = torch.as_tensor(side.input_ids, dtype=torch.int64)
        return torch.log_softmax(model(input_ids=tokens[None], use_cache=False).logits[0, span[0] - 1 : span[1] - 1], dim=-1)

    p = distributions(policy, long, long.answer_spans[turn])
    with torch.no_grad():
        q = distributions(reference, short, short.answer_spans[0])
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")


def preference(case: Case, policy: Any, reference: Any, pair: PreferencePair) -> torch.Tensor:
    """The preference term of a document, whose turns are one pair of answers or a pair each."""
    if case.loss_type == "sft-s2l":
        chats = enumerate(pair.short_chosen)
        by_turn = torch.stack([answer_divergence(policy, reference, pair.chosen, turn, short) for turn, short in chats])
        return case.beta * (by_turn.mean() if case.per_turn else by_turn.sum())
    wanted = {"needs_reference": case.loss_type in ("hinge", "ipo", "solo-dpo")}
    long = [answers_of(policy, reference, side, **wanted) for side in (pair.chosen, pair.rejected)]
    short = [
        [answers_of(policy, reference, chat, **wanted)[0] for chat in chats] for chats in (pair.short_chosen, pair.short_rejected)
    ]
    if not case.loss_type.startswith("solo"):  # the reference reads the short chats
        long = [
            [dataclasses.replace(one, reference=other.reference) for one, other in zip(*sides, strict=True)]
            for sides in zip(long, short, strict=True)
        ]
    if not case.per_turn:
        long, short = [[as_one(side)] for side in long], [[as_one(side)] for side in short]
    if not case.loss_type.startswith("solo"):
        return torch.stack([loss_of(case, *sides) for sides in zip(*long, strict=True)]).mean()
    preferred = torch.stack([loss_of(case, *sides) for sides in zip(*short, strict=True)]).mean()
    distances = [(reward_of(case, a) - reward_of(case, b)).abs() for a, b in zip(short[0], long[0], strict=True)]
    return preferred + case.alpha * torch.stack(distances).mean()
