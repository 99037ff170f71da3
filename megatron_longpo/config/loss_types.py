"""What each ``--loss-type`` reads, so that packing, reference and validation agree on it."""

from __future__ import annotations

import dataclasses

from megatron_longpo.config.schema import ObjectiveConfig, ReferenceConfig, ReferenceContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTraits:
    """What a loss type reads beside the policy on the chosen long chat, and which settings it has.

    Attributes:
        rejected: the policy reads the rejected long chat.
        settings: of the objective, those that mean something to it only.
        uses_reference: the log-probs of a reference.
    """

    rejected: bool = True
    uses_reference: bool = True
    settings: frozenset[str] = frozenset()


LOSS_TYPES: dict[str, LossTraits] = {
    "sigmoid": LossTraits(settings=frozenset({"label_smoothing"})),
    "hinge": LossTraits(),
    "ipo": LossTraits(),
    "simpo": LossTraits(uses_reference=False, settings=frozenset({"label_smoothing", "simpo_gamma"})),
}
"""By ``--loss-type``."""

OWN_SETTINGS = frozenset[str]().union(*(traits.settings for traits in LOSS_TYPES.values()))
"""Settings that some loss types have and others do not."""


def traits_of(objective: ObjectiveConfig) -> LossTraits | None:
    """What the preference term reads; None where it has no weight."""
    return LOSS_TYPES[objective.loss_type] if objective.preference_weight else None


def reference_contexts(objective: ObjectiveConfig, reference: ReferenceConfig) -> tuple[ReferenceContext, ...]:
    """Contexts in which the log-probs of the reference are needed, in the order in which they are given to the objective."""
    traits = traits_of(objective)
    return (reference.reference_context,) if traits is not None and traits.uses_reference else ()
