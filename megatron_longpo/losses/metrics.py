"""Metrics of a micro-batch as numerators and denominators, so that they add up over micro-batches and ranks.

Names that TRL has too mean what they mean there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_longpo.losses.objective import ObjectiveOutput, PolicySums

_PER_PAIR = (
    "loss",
    "nll_loss",
    "preference_loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def metric_names(max_turns: int) -> tuple[str, ...]:
    """Names of the rows of `metric_sums`, in order."""
    turns = tuple(f"rewards/margins/turn_{turn + 1}" for turn in range(max_turns))
    return (*_PER_PAIR, "kl/short_to_long", *turns)


def metric_sums(
    output: ObjectiveOutput,
    sums: PolicySums,
    nll_tokens: Tensor,
    turn_mask: Tensor,
    answer_tokens: Tensor,
    reference_logps: Tensor,
    max_turns: int,
) -> Tensor:
    """Numerator and denominator of every metric.

    Args:
        output: the pairs' objective.
        sums: the policy's log-prob sums.
        nll_tokens: ``[p]``.
        turn_mask: ``[p, t]``.
        answer_tokens: ``[p, t, 2]``.
        reference_logps: ``[p, t, 2]``, NaN where there is none.
        max_turns: turns of the longest pair of the run, so that every rank has the same rows.

    Returns:
        ``[metrics, 2]`` float64: rows in the order of `metric_names`. Means over pairs; ``kl/short_to_long`` is a mean over
        chosen answer
        tokens of ``logp_ref - logp_policy``, an estimate of KL(reference on short || policy on long); a turn's margin is a
        mean over the pairs that have the turn. What was not computed has denominator 0: rewards and preference loss without a
        reference, ``nll_loss`` without targets, ``logps/rejected`` where the rejected side was not read.
    """
    exists = turn_mask > 0
    known = exists & ~reference_logps.isnan().any(-1)
    has_reference = (known == exists).all(-1)  # [p]
    rewards = torch.where(known[..., None], output.rewards, 0.0)
    chosen, rejected = rewards[..., 0].sum(-1), rewards[..., 1].sum(-1)
    answers = sums.answers * exists[..., None]
    every, referenced = torch.ones_like(output.loss), has_reference.to(output.loss.dtype)
    rows = [
        (output.loss, every),
        (output.nll, (nll_tokens > 0).double()),
        (output.preference * referenced, referenced),
        (chosen * referenced, referenced),
        (rejected * referenced, referenced),
        ((chosen - rejected) * referenced, referenced),
        ((chosen > rejected).to(output.loss.dtype) * referenced, referenced),
        (answers[..., 0].sum(-1), every),
        (answers[..., 1].sum(-1), (answer_tokens[..., 1].sum(-1) > 0).double()),
    ]
    drift = torch.where(known, reference_logps[..., 0] - sums.answers[..., 0], 0.0)
    rows.append((drift.flatten(), torch.where(known, answer_tokens[..., 0], 0.0).flatten()))
    margins = rewards[..., 0] - rewards[..., 1]
    for turn in range(max_turns):
        present = turn < margins.size(1)
        rows.append((margins[:, turn], known[:, turn].double()) if present else (every * 0, every * 0))
    return torch.stack([torch.stack([top.detach().sum().double(), bottom.sum().double()]) for top, bottom in rows])


def metric_means(totals: Tensor, max_turns: int) -> dict[str, float]:
    """Quotients of summed `metric_sums`; metrics with denominator 0 are left out."""
    pairs = zip(metric_names(max_turns), totals.tolist(), strict=True)
    return {name: top / bottom for name, (top, bottom) in pairs if bottom}
