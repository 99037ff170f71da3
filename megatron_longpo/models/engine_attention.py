"""Transformer Engine's attention, for sequences that share nothing (``--attention-backend te``). Not run on a GPU yet."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_longpo.models.attention import PackedAttention, PackedCoreAttention


def _engine() -> type:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    return TEDotProductAttention


class EngineCoreAttention(PackedCoreAttention):
    """Each chain on its own through Megatron-Core's ``TEDotProductAttention``, causal, as ``[s, b, n, d]``.

    Rotation is by packed positions, as everywhere here. Sequences whose chains are attached to each other, which a live
    reference's are, go through the planned blocks.
    """

    def __init__(self, config: Any, layer_number: int, *, engine: type | None = None, **arguments: Any) -> None:
        """Build the engine's module, with the arguments that Megatron-Core passes to a core attention."""
        super().__init__(config, layer_number, **arguments)
        arguments["attn_mask_type"] = AttnMaskType.causal
        self.engine = (engine or _engine())(config=config, layer_number=layer_number, **arguments)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedAttention) -> Tensor:
        """As `PackedCoreAttention.attend`."""
        if any(chain.parent is not None for chain in packed.chains):
            return super().attend(query, key, value, packed)
        parts = [
            self.engine(
                *(states[chain.start : chain.end] for states in (query, key, value)), None, attn_mask_type=AttnMaskType.causal
            )
            for chain in packed.chains
        ]
        return torch.cat(parts)
