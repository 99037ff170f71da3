"""Metrics of a micro-batch as numerators and denominators, so that they add up over micro-batches and ranks.

Names that TRL has too mean what they mean there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_longpo.losses.objective import ObjectiveOutput, PairTables, PolicySums

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
    "alignment_loss",
    "logps/short_chosen",
    "logps/short_rejected",
)


def metric_names(max_turns: int) -> tuple[str, ...]:
    """Names of the rows of `metric_sums`, in order."""
    turns = tuple(f"rewards/margins/turn_{turn + 1}" for turn in range(max_turns))
    return (*_PER_PAIR, "kl/short_to_long", "kl/long_to_short", *turns)


def metric_sums(output: ObjectiveOutput, sums: PolicySums, tables: PairTables, max_turns: int) -> Tensor:
    """Numerator and denominator of every metric.

    Args:
        output: the pairs' objective.
        sums: the policy's log-prob sums.
        tables: what is known of the pairs.
        max_turns: turns of the longest pair of the run, so that every rank has the same rows.

    Returns:
        ``[metrics, 2]`` float64: rows in the order of `metric_names`. Means over pairs; ``kl/short_to_long`` is a mean over
        chosen answer tokens of ``logp_ref - logp_policy``, an estimate of KL(reference on short || policy on long), and
        ``kl/long_to_short`` of the divergence the other way round over the whole vocabulary; a turn's margin is a mean over the
        pairs that have the turn. What was not computed has denominator 0: rewards without the reference that they need,
        ``nll_loss`` without targets, ``logps/rejected`` where the rejected side was not read.
    """
    exists = tables.turn_mask > 0
    known = exists & ~output.rewards.isnan().any(-1)
    rewarded = (known == exists).all(-1).to(output.loss.dtype)  # [p]
    rewards = torch.where(known[..., None], output.rewards, 0.0)
    chosen, rejected = rewards[..., 0].sum(-1), rewards[..., 1].sum(-1)
    every = torch.ones_like(output.loss)
    rows = [
        (output.loss, every),
        (output.nll, (tables.nll_tokens > 0).double()),
        _where_computed(output.preference),
        (chosen * rewarded, rewarded),
        (rejected * rewarded, rewarded),
        ((chosen - rejected) * rewarded, rewarded),
        ((chosen > rejected) * rewarded, rewarded),
        *_where_read(sums.answers, tables.answer_tokens),
        _where_computed(output.alignment),
        *_where_read(sums.short_answers, tables.short_answer_tokens),
    ]
    referenced = exists & ~tables.reference_logps.isnan().any(-1)
    drift = torch.where(referenced, tables.reference_logps[..., 0] - sums.answers[..., 0], 0.0)
    rows.append((drift.flatten(), torch.where(referenced, tables.answer_tokens[..., 0], 0.0).flatten()))
    taught = every * 0 if sums.divergence is None else tables.answer_tokens[..., 0].flatten()
    rows.append((every * 0 if sums.divergence is None else sums.divergence.flatten(), taught))
    margins = rewards[..., 0] - rewards[..., 1]
    for turn in range(max_turns):
        present = turn < margins.size(1)
        rows.append((margins[:, turn], known[:, turn].double()) if present else (every * 0, every * 0))
    return torch.stack([torch.stack([top.detach().sum().double(), bottom.sum().double()]) for top, bottom in rows])


def _where_read(answers: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probs of all answers of a side, chosen and rejected, and ones for the pairs whose side was read."""
    for side in range(2):
        yield answers[..., side].sum(-1), (tokens[..., side].sum(-1) > 0).double()


def _where_computed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values and ones where they are known; zeros elsewhere."""
    return values.nan_to_num(), (~values.isnan()).to(values.dtype)


def metric_means(totals: Tensor, max_turns: int) -> dict[str, float]:
    """Quotients of summed `metric_sums`; metrics with denominator 0 are left out."""
    pairs = zip(metric_names(max_turns), totals.tolist(), strict=True)
    return {name: top / bottom for name, (top, bottom) in pairs if bottom}
