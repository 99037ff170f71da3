"""Floating-point operations of a step.

A matrix multiplication of ``[m, k]`` and ``[k, n]`` counts ``2 m k n``. Backward is twice a linear's forward and two and a half
times attention's, since a flash kernel computes the scores again. Norms, activations and the optimizer are left out.
"""

from __future__ import annotations

import dataclasses

from megatron_longpo.config.schema import TrainingConfig
from megatron_longpo.estimation.shape import PairShape, triangle
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.flops import head_parameters, layer_parameters, step_flops


def forward_flops(architecture: ModelArchitecture, rows: int, score_pairs: int, layers: int) -> int:
    """Forward pass of some layers, without the head."""
    attention = 4 * architecture.num_attention_heads * architecture.kv_channels * score_pairs
    return layers * (2 * layer_parameters(architecture) * rows + attention)


def pair_flops(architecture: ModelArchitecture, shape: PairShape) -> int:
    """Forward and backward of one pair, nothing computed twice: what the utilisation of a machine is measured by."""
    return step_flops(architecture).step(shape.rows, shape.score_pairs)


def recompute_flops(architecture: ModelArchitecture, shape: PairShape, training: TrainingConfig, stages: int) -> int:
    """What recomputation adds to a pair."""
    layers = architecture.num_layers
    if training.recompute_granularity == "selective":
        return layers * 2 * 3 * architecture.hidden_size * architecture.ffn_hidden_size * shape.rows
    if training.recompute_granularity != "full":
        return 0
    again = layers if training.recompute_method == "uniform" else min(layers, stages * training.recompute_num_layers)
    return forward_flops(architecture, shape.rows, shape.score_pairs if training.recompute_attention else 0, again)


def two_pass_flops(architecture: ModelArchitecture, shape: PairShape, turns: int, short_length: int) -> int:
    """The public method: chosen and rejected as whole sequences, and a live reference that reads each short side.

    Args:
        architecture: of policy and reference.
        shape: the pair.
        turns: number of turns.
        short_length: tokens of a turn's short side, answer included.
    """
    policy = pair_flops(architecture, dataclasses.replace(shape, prefix_sharing=False))
    layers = architecture.num_layers
    reference = forward_flops(architecture, short_length, triangle(short_length), layers)
    return policy + 2 * turns * (reference + 2 * head_parameters(architecture) * short_length)
