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

import torch
from torch import Tensor

from megatron_longpo.config.loss_types import traits_of
from megatron_longpo.config.schema import ObjectiveConfig
from megatron_longpo.losses.preference import Answers, answer_rewards, preference_loss


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
class PairTables:
    """What the objective knows of ``p`` pairs of up to ``t`` turns beside the policy's sums.

    Attributes:
        nll_tokens: ``[p]`` number of targets of the NLL.
        turn_mask: ``[p, t]`` 1 where the turn exists.
        answer_tokens: ``[p, t, 2]`` tokens of (chosen, rejected); 0 for a side that was not read.
        reference_logps: ``[p, t, 2]`` log-probs of (chosen, rejected) under the reference; NaN where there is none.
    """

    nll_tokens: Tensor
    turn_mask: Tensor
    answer_tokens: Tensor
    reference_logps: Tensor


@dataclasses.dataclass(frozen=True)
class ObjectiveOutput:
    """Each pair's objective and its parts, all ``[p]`` unless said otherwise. NaN is what was not computed.

    Attributes:
        loss: ``nll_weight * nll + preference_weight * preference``.
        nll: mean negative log-likelihood of the pair's NLL targets; 0 where there are none.
        preference: preference loss.
        rewards: ``[p, t, 2]`` reward of each turn's (chosen, rejected) answer, see `answer_rewards`.
    """

    loss: Tensor
    nll: Tensor
    preference: Tensor
    rewards: Tensor


def longpo_objective(sums: PolicySums, tables: PairTables, config: ObjectiveConfig) -> ObjectiveOutput:
    """Objective of each pair of a micro-batch.

    Args:
        sums: the policy's sums; gradients flow into them.
        tables: what is known of the pairs.
        config: weights and kind of the terms.

    Returns:
        The objective and its parts.

    Parallel: none; pass complete sums.
    """
    nll = -sums.nll / tables.nll_tokens.clamp(min=1)
    loss = config.nll_weight * nll
    if traits_of(config) is None:
        return ObjectiveOutput(loss, nll, torch.full_like(nll, torch.nan), torch.full_like(sums.answers, torch.nan))
    turns = (sums.answers, tables.reference_logps, tables.answer_tokens)
    preference = preference_loss(Answers.of_turns(*turns, tables.turn_mask, config.turn_aggregation), tables.turn_mask, config)
    rewards = answer_rewards(*turns, tables.turn_mask, config)
    return ObjectiveOutput(loss + config.preference_weight * preference, nll, preference, rewards)
