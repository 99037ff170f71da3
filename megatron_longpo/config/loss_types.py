"""What each ``--loss-type`` reads, so that packing, reference and validation agree on it."""

from __future__ import annotations

import dataclasses

from megatron_longpo.config.schema import ObjectiveConfig, ReferenceConfig, ReferenceContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTraits:
    """What a loss type reads beside the policy on the chosen long chat, and which settings it has.

    Attributes:
        rejected: the policy reads the rejected long chat.
        short: the policy reads the short chats, chosen and rejected.
        uses_reference: the log-probs of a reference, in the context that the run names or, if ``short``, in both.
        distribution: the reference's whole distributions over the chosen answers' tokens, instead of its log-probs.
        settings: of the objective, those that other loss types do not have.
        solo_alpha: default weight of SoLoPO's alignment (its paper's, arXiv 2505.11166); 0 for other losses.
    """

    rejected: bool = True
    short: bool = False
    uses_reference: bool = True
    distribution: bool = False
    settings: frozenset[str] = frozenset()
    solo_alpha: float = 0.0


LOSS_TYPES: dict[str, LossTraits] = {
    "sigmoid": LossTraits(settings=frozenset({"label_smoothing"})),
    "hinge": LossTraits(),
    "ipo": LossTraits(),
    "simpo": LossTraits(uses_reference=False, settings=frozenset({"label_smoothing", "simpo_gamma"})),
    "solo-dpo": LossTraits(rejected=False, short=True, settings=frozenset({"label_smoothing", "solo_alpha"}), solo_alpha=3.0),
    "solo-simpo": LossTraits(
        rejected=False,
        short=True,
        uses_reference=False,
        solo_alpha=1.0,
        settings=frozenset({"label_smoothing", "simpo_gamma", "solo_alpha"}),
    ),
    "solo-orpo": LossTraits(rejected=False, short=True, uses_reference=False, settings=frozenset({"solo_alpha"}), solo_alpha=1.0),
    "sft-s2l": LossTraits(rejected=False, distribution=True),
}
"""By ``--loss-type``."""

OWN_SETTINGS = frozenset[str]().union(*(traits.settings for traits in LOSS_TYPES.values()))
"""Settings that some loss types have and others do not."""


def traits_of(objective: ObjectiveConfig) -> LossTraits | None:
    """What the preference term reads; None where it has no weight."""
    return LOSS_TYPES[objective.loss_type] if objective.preference_weight else None


def reference_contexts(objective: ObjectiveConfig, reference: ReferenceConfig) -> tuple[ReferenceContext, ...]:
    """Contexts in which the reference is needed, in the order in which its log-probs are given to the objective."""
    traits = traits_of(objective)
    if traits is None or not traits.uses_reference:
        return ()
    if traits.distribution:
        return ("short",)
    return ("short", "long") if traits.short else (reference.reference_context,)
