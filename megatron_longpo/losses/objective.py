"""The LongPO objective, as pure functions of log-prob sums. No process group, no model, no data layout.

Math (arXiv 2502.13922, Eq. 12-14), for one document with turns ``i``:

    ratio_c = sum_i [ logp(chosen_i | long, earlier chosen turns)     - logp_ref(chosen_i | short_i) ]
    ratio_r = sum_i [ logp(rejected_i | long, earlier rejected turns) - logp_ref(rejected_i | short_i) ]
    PREF    = -logsigmoid(beta * (ratio_c - ratio_r))
    NLL     = -(1 / (S - 1)) * sum over the chosen sequence's targets of log p
    L       = nll_weight * NLL + preference_weight * PREF

The paper's printed Eq. 13 sums probabilities inside the logarithm; its code sums log-probs, and so do we.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_longpo.config.schema import ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class PolicySums:
    """Complete sums of the policy's log-probs (over context-parallel ranks, if there are any).

    Attributes:
        nll: ``[p]`` sum of log p over the targets of the NLL (negative).
        answers: ``[p, t, 2]`` sum of log p over each turn's (chosen, rejected) answer.
    """

    nll: Tensor
    answers: Tensor


@dataclasses.dataclass(frozen=True)
class ObjectiveOutput:
    """Each pair's objective and its parts, all ``[p]`` unless said otherwise.

    Attributes:
        loss: ``nll_weight * nll + preference_weight * preference``.
        nll: mean negative log-likelihood of the pair's NLL targets; 0 where there are none.
        preference: preference loss; 0 without a reference.
        rewards: ``[p, t, 2]`` beta times the log-ratio of each turn's (chosen, rejected) answer; NaN without a reference.
    """

    loss: Tensor
    nll: Tensor
    preference: Tensor
    rewards: Tensor


def sigmoid_loss(scaled_margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of the preference under Bradley-Terry, element by element.

    Math: ``-(1 - e) * logsigmoid(x) - e * logsigmoid(-x)`` with ``x = beta * margin`` (conservative DPO's smoothing ``e``).
    """
    kept = -logsigmoid(scaled_margin)
    if not label_smoothing:
        return kept
    return (1 - label_smoothing) * kept - label_smoothing * logsigmoid(-scaled_margin)


PREFERENCE_LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {"sigmoid": sigmoid_loss}
"""Losses on the scaled margin, by ``--loss-type``."""


def preference_loss(rewards: Tensor, turn_mask: Tensor, config: ObjectiveConfig) -> Tensor:
    """Preference loss of each pair.

    Args:
        rewards: ``[p, t, 2]`` beta times the log-ratios.
        turn_mask: ``[p, t]`` 1 where the turn exists.
        config: aggregation, loss type and label smoothing.

    Returns:
        ``[p]``: one loss of the summed margin (``sum``), or the mean of the turns' losses (``per-turn``).
    """
    loss = PREFERENCE_LOSSES[config.loss_type]
    margins = (rewards[..., 0] - rewards[..., 1]) * turn_mask
    if config.turn_aggregation == "sum":
        return loss(margins.sum(-1), config.label_smoothing)
    return (loss(margins, config.label_smoothing) * turn_mask).sum(-1) / turn_mask.sum(-1)


def longpo_objective(
    sums: PolicySums, nll_tokens: Tensor, turn_mask: Tensor, reference_logps: Tensor, config: ObjectiveConfig
) -> ObjectiveOutput:
    """Objective of each pair of a micro-batch.

    Args:
        sums: the policy's sums; gradients flow into them.
        nll_tokens: ``[p]`` number of targets of the NLL.
        turn_mask: ``[p, t]``.
        reference_logps: ``[p, t, 2]`` log-probs of (chosen, rejected) under the reference; NaN where there is none.
        config: weights and kind of the terms.

    Returns:
        The objective and its parts.

    Parallel: none; pass complete sums.
    """
    nll = -sums.nll / nll_tokens.clamp(min=1)
    rewards = config.beta * (sums.answers - reference_logps)  # NaN where there is no turn or no reference
    if config.preference_weight:
        present = torch.where(turn_mask[..., None] > 0, rewards, 0.0)
        preference = preference_loss(present, turn_mask, config)
    else:
        preference = torch.zeros_like(nll)
    loss = config.nll_weight * nll + config.preference_weight * preference
    return ObjectiveOutput(loss, nll, preference, rewards)
