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
from megatron_longpo.losses.preference import (
    Answers,
    alignment_loss,
    answer_rewards,
    grouped,
    mean_over_groups,
    preference_loss,
)


@dataclasses.dataclass(frozen=True)
class PolicySums:
    """Complete sums of the policy's log-probs (over context-parallel ranks, if there are any).

    Attributes:
        nll: ``[p]`` sum of log p over the targets of the NLL (negative).
        answers: ``[p, t, 2]`` sum of log p over each turn's (chosen, rejected) answer in the long chat.
        short_answers: ``[p, t, 2]`` the same in the turn's short chat. In both, 0 for a side that was not read.
        divergence: ``[p, t]`` sum over the chosen answer's tokens of KL(policy on long || reference on short); None if not read.
    """

    nll: Tensor
    answers: Tensor
    short_answers: Tensor
    divergence: Tensor | None = None

    def cpu(self) -> PolicySums:
        """The same in the host's memory."""
        divergence = None if self.divergence is None else self.divergence.cpu()
        return PolicySums(self.nll.cpu(), self.answers.cpu(), self.short_answers.cpu(), divergence)


@dataclasses.dataclass(frozen=True)
class PairTables:
    """What the objective knows of ``p`` pairs of up to ``t`` turns beside the policy's sums.

    Attributes:
        nll_tokens: ``[p]`` number of targets of the NLL.
        turn_mask: ``[p, t]`` 1 where the turn exists.
        answer_tokens: ``[p, t, 2]`` tokens of (chosen, rejected) in the long chat; 0 for a side that was not read.
        short_answer_tokens: ``[p, t, 2]`` the same in the short chats.
        reference_logps: ``[p, t, 2]`` log-probs of (chosen, rejected) under the reference; NaN where there is none.
        long_reference_logps: ``[p, t, 2]`` the same on the long chat, where the loss needs both contexts and ``reference_logps``
            are on the short ones; NaN elsewhere.
    """

    nll_tokens: Tensor
    turn_mask: Tensor
    answer_tokens: Tensor
    short_answer_tokens: Tensor
    reference_logps: Tensor
    long_reference_logps: Tensor


@dataclasses.dataclass(frozen=True)
class ObjectiveOutput:
    """Each pair's objective and its parts, all ``[p]`` unless said otherwise. NaN is what was not computed.

    Attributes:
        loss: ``nll_weight * nll + preference_weight * preference``.
        nll: mean negative log-likelihood of the pair's NLL targets; 0 where there are none.
        preference: preference loss; of SoLoPO's losses with their alignment; of sft-s2l the constraint.
        alignment: SoLoPO's alignment, without its weight.
        rewards: ``[p, t, 2]`` reward of each turn's (chosen, rejected) answer, see `answer_rewards`.
    """

    loss: Tensor
    nll: Tensor
    preference: Tensor
    alignment: Tensor
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
    loss, unknown = config.nll_weight * nll, torch.full_like(nll, torch.nan)
    traits, mask, aggregation = traits_of(config), tables.turn_mask, config.turn_aggregation
    if traits is None:
        return ObjectiveOutput(loss, nll, unknown, unknown, torch.full_like(sums.answers, torch.nan))
    if traits.distribution:
        assert sums.divergence is not None
        preference = config.beta * mean_over_groups(grouped(sums.divergence, mask, aggregation), mask)
        loss = loss + config.preference_weight * preference
        return ObjectiveOutput(loss, nll, preference, unknown, torch.full_like(sums.answers, torch.nan))
    logps, tokens = (sums.short_answers, tables.short_answer_tokens) if traits.short else (sums.answers, tables.answer_tokens)
    answers = Answers.of_turns(logps, tables.reference_logps, tokens, mask, aggregation)
    preference, alignment = preference_loss(answers, mask, config), unknown
    if traits.short:
        long = Answers.of_turns(sums.answers, tables.long_reference_logps, tables.answer_tokens, mask, aggregation)
        alignment = alignment_loss(answers, long, mask, config)
        preference = preference + (traits.solo_alpha if config.solo_alpha is None else config.solo_alpha) * alignment
    rewards = answer_rewards(logps, tables.reference_logps, tokens, mask, config)
    return ObjectiveOutput(loss + config.preference_weight * preference, nll, preference, alignment, rewards)
