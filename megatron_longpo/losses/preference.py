"""Preference losses: each is a reward of an answer, and a function of the margin between two rewards.

Several turns are one pair of answers (``sum``: log-probs and tokens are those of all turns together), or a pair each
(``per-turn``: the mean of their losses). With one turn the two are the same, and the values are those of TRL.

SoLoPO's losses are one of them on the short contexts, and the distance of the chosen answers' rewards on short and long ones.

Sources: sigmoid, arXiv 2305.18290 Eq. 7; hinge, arXiv 2305.10425 on DPO's margin; ipo, arXiv 2310.12036 Eq. 17, with log-ratios
averaged over tokens as in TRL; simpo, arXiv 2405.14734 Eq. 6; orpo's odds ratio, arXiv 2403.07691 Eq. 4 and 7, with beta before
it as in TRL; solo-*, arXiv 2505.11166.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_longpo.config.loss_types import LOSS_TYPES
from megatron_longpo.config.schema import ObjectiveConfig, TurnAggregation


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of ``g`` pairs a document: one, or one a turn.

    Attributes:
        logps: ``[p, g, 2]`` log-probs of (chosen, rejected) under the policy.
        reference: ``[p, g, 2]`` under the reference; NaN where there is none.
        tokens: ``[p, g, 2]``; at least 1.
    """

    logps: Tensor
    reference: Tensor
    tokens: Tensor

    @classmethod
    def of_turns(
        cls, logps: Tensor, reference: Tensor, tokens: Tensor, turn_mask: Tensor, aggregation: TurnAggregation
    ) -> Answers:
        """Put turns together, from ``[p, t, 2]`` each; what a turn that does not exist holds is not looked at."""
        logps, reference, tokens = (grouped(values, turn_mask, aggregation) for values in (logps, reference, tokens))
        return cls(logps, reference, tokens.clamp(min=1))


def grouped(values: Tensor, turn_mask: Tensor, aggregation: TurnAggregation) -> Tensor:
    """Turns of a document together, ``[p, t, ..] -> [p, 1, ..]``, or each for itself; 0 for those that do not exist."""
    exists = turn_mask.reshape(*turn_mask.shape, *[1] * (values.dim() - 2)) > 0
    present = torch.where(exists, values, 0.0)
    return present.sum(1, keepdim=True) if aggregation == "sum" else present


def mean_over_groups(losses: Tensor, turn_mask: Tensor) -> Tensor:
    """``[p, g] -> [p]``; of turns, the mean over those that exist."""
    if losses.size(1) != turn_mask.size(1):
        return losses.squeeze(1)
    return (losses * turn_mask).sum(-1) / turn_mask.sum(-1)


def log_ratio(answers: Answers, beta: float) -> Tensor:
    """DPO's reward: ``beta * (log pi - log ref)``."""
    return beta * (answers.logps - answers.reference)


def mean_log_ratio(answers: Answers, beta: float) -> Tensor:
    """IPO's: the log-ratio of a token, on average."""
    return (answers.logps - answers.reference) / answers.tokens


def mean_logp(answers: Answers, beta: float) -> Tensor:
    """SimPO's: beta times the log-prob of a token, on average."""
    return beta * answers.logps / answers.tokens


def log_odds(answers: Answers, beta: float) -> Tensor:
    """ORPO's: ``log(q / (1 - q))``, q the geometric mean of the tokens' probabilities; bounded where q is 1."""
    mean = (answers.logps / answers.tokens).clamp(max=-1e-12)
    return mean - torch.log(-torch.expm1(mean))


def sigmoid_loss(scaled_margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of the preference under Bradley-Terry, element by element.

    Math: ``-(1 - e) * logsigmoid(x) - e * logsigmoid(-x)`` with ``x = beta * margin`` (conservative DPO's smoothing ``e``).
    """
    kept = -logsigmoid(scaled_margin)
    if not label_smoothing:
        return kept
    return (1 - label_smoothing) * kept - label_smoothing * logsigmoid(-scaled_margin)


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """A loss type.

    Attributes:
        reward: of answers and beta, ``[p, g, 2]``.
        loss: of the margin of rewards and the configuration.
    """

    reward: Callable[[Answers, float], Tensor]
    loss: Callable[[Tensor, ObjectiveConfig], Tensor]


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(log_ratio, lambda margin, config: sigmoid_loss(margin, config.label_smoothing)),
    "hinge": PreferenceLoss(log_ratio, lambda margin, config: torch.relu(1 - margin)),
    "ipo": PreferenceLoss(mean_log_ratio, lambda margin, config: (margin - 1 / (2 * config.beta)) ** 2),
    "simpo": PreferenceLoss(mean_logp, lambda margin, config: sigmoid_loss(margin - config.simpo_gamma, config.label_smoothing)),
}
PREFERENCE_LOSSES |= {
    "solo-dpo": PREFERENCE_LOSSES["sigmoid"],
    "solo-simpo": PREFERENCE_LOSSES["simpo"],
    "solo-orpo": PreferenceLoss(log_odds, lambda margin, config: -config.beta * logsigmoid(margin)),
}
"""By ``--loss-type``."""


def preference_loss(answers: Answers, turn_mask: Tensor, config: ObjectiveConfig) -> Tensor:
    """Preference loss of each document.

    Args:
        answers: of one aggregation.
        turn_mask: ``[p, t]`` 1 where the turn exists.
        config: loss type and its settings.

    Returns:
        ``[p]``: one loss of all turns together (``sum``), or the mean of the turns' losses (``per-turn``).
    """
    kind = PREFERENCE_LOSSES[config.loss_type]
    rewards = kind.reward(answers, config.beta)
    return mean_over_groups(kind.loss(rewards[..., 0] - rewards[..., 1], config), turn_mask)


def alignment_loss(short: Answers, long: Answers, turn_mask: Tensor, config: ObjectiveConfig) -> Tensor:
    """SoLoPO's alignment of each document, ``[p]``: how far the chosen answer's rewards on the two contexts are apart."""
    reward = PREFERENCE_LOSSES[config.loss_type].reward
    distance = (reward(short, config.beta)[..., 0] - reward(long, config.beta)[..., 0]).abs()
    return mean_over_groups(distance, turn_mask)


def answer_rewards(logps: Tensor, reference: Tensor, tokens: Tensor, turn_mask: Tensor, config: ObjectiveConfig) -> Tensor:
    """Rewards of each turn's answers as metrics tell them, from ``[p, t, 2]`` each; NaN where a reference lacks.

    They are TRL's: ``beta`` times the log-ratio, of reference-free losses ``beta`` times the log-prob a token. The turns of a
    document add up to the reward of its answers in the aggregation that the loss has.
    """
    if LOSS_TYPES[config.loss_type].uses_reference:
        return config.beta * (logps - reference)
    return config.beta * logps / grouped(tokens, turn_mask, config.turn_aggregation).clamp(min=1)
