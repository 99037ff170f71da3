"""Which Hugging Face linears each Megatron-Core linear fuses, and how their adapters are named in both worlds.

An adapter belongs to a Hugging Face linear: the fused ones get one for each part, as PEFT gives them, so that training moves in
PEFT's own parameters and an export loses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from megatron_longpo.models.architecture import ModelArchitecture


@dataclasses.dataclass(frozen=True)
class AdaptedLinear:
    """A linear of a Megatron-Core layer.

    Attributes:
        owner: submodule of the layer that holds it.
        name: its name there.
        hf_owner: submodule of a Hugging Face layer that holds its parts.
        parts: the Hugging Face linears in it, in order.
        column_parallel: whether tensor parallelism divides its output (else its input).
    """

    owner: str
    name: str
    hf_owner: str
    parts: tuple[str, ...]
    column_parallel: bool

    def key(self, part: str, matrix: str) -> str:
        """Name of a part's ``A`` or ``B`` in a native checkpoint, where the layers are stacked."""
        return f"decoder.layers.{self.owner}.{self.name}.adapter.{part}_{matrix}"

    def hf_module(self, layer: int, part: str) -> str:
        """Name of a part in a Hugging Face model."""
        return f"model.layers.{layer}.{self.hf_owner}.{part}"


LINEARS = (
    AdaptedLinear("self_attention", "linear_qkv", "self_attn", ("q_proj", "k_proj", "v_proj"), column_parallel=True),
    AdaptedLinear("self_attention", "linear_proj", "self_attn", ("o_proj",), column_parallel=False),
    AdaptedLinear("mlp", "linear_fc1", "mlp", ("gate_proj", "up_proj"), column_parallel=True),
    AdaptedLinear("mlp", "linear_fc2", "mlp", ("down_proj",), column_parallel=False),
)


def hugging_face_names(targets: Sequence[str]) -> tuple[str, ...]:
    """The Hugging Face linears that ``targets``, names of either kind, stand for; each once, in the order of the layer."""
    return tuple(part for linear in LINEARS for part in linear.parts if part in targets or linear.name in targets)


def linear_sizes(architecture: ModelArchitecture) -> dict[str, tuple[int, int]]:
    """Output and input width of each Hugging Face linear of a layer."""
    hidden, ffn = architecture.hidden_size, architecture.ffn_hidden_size
    queries = architecture.num_attention_heads * architecture.kv_channels
    keys = architecture.num_query_groups * architecture.kv_channels
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }


def adapted_parts(targets: Sequence[str]) -> Iterator[tuple[AdaptedLinear, str]]:
    """Each linear part named in ``targets`` (Hugging Face names), with the Megatron-Core linear that holds it."""
    for linear in LINEARS:
        for part in linear.parts:
            if part in targets:
                yield linear, part
