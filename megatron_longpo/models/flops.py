"""Floating-point operations of a training step, from the architecture: what work is measured in."""

from __future__ import annotations

import dataclasses

from megatron_longpo.models.architecture import ModelArchitecture


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Forward and backward of a dense decoder. The backward of a matrix product is two products, that of attention five for two.

    Attributes:
        per_row: of the linear layers and the head, for each row.
        per_score_pair: of attention, for each query and key that see each other, over all heads and layers.
    """

    per_row: int
    per_score_pair: int

    def step(self, rows: int, score_pairs: int) -> int:
        """Operations of a step over so many rows and pairs of query and key."""
        return self.per_row * rows + self.per_score_pair * score_pairs


def layer_parameters(architecture: ModelArchitecture) -> int:
    """Weights of one layer that rows are multiplied by."""
    heads, groups, width = architecture.num_attention_heads, architecture.num_query_groups, architecture.hidden_size
    attention = width * architecture.kv_channels * 2 * (heads + groups)  # q and output; k and v
    return attention + 3 * width * architecture.ffn_hidden_size


def head_parameters(architecture: ModelArchitecture) -> int:
    """Weights of the head; the embedding is looked up, not multiplied."""
    return architecture.hidden_size * architecture.vocab_size


def step_flops(architecture: ModelArchitecture) -> StepFlops:
    """Count the products of a model; norms, activations and the embedding's look-up are left out."""
    weights = architecture.num_layers * layer_parameters(architecture) + head_parameters(architecture)
    scores = architecture.num_layers * architecture.num_attention_heads * architecture.kv_channels
    return StepFlops(per_row=3 * 2 * weights, per_score_pair=7 * 2 * scores)
