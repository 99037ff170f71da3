"""Bytes of one transformer layer on one rank: what it keeps for the backward, and what its backward needs beside that.

Tensors are counted where the code makes them: `models.attention` keeps rotated queries and keys, values, the output and a
log-sum-exp a row and head; `models.norm` its input and a scale a row; `models.swiglu` its input; every linear its input.
Transformer Engine's modules keep the same.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from megatron_longpo.models.architecture import ModelArchitecture

if TYPE_CHECKING:
    from megatron_longpo.config.schema import ParallelConfig
    from megatron_longpo.estimation.memory import Ranks

FP32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """One layer of one micro-batch on one rank.

    Attributes:
        entry: its input, all that remains where it is recomputed.
        saved: everything that it keeps.
        mlp: how much of that is the feed-forward half's, and goes where that is recomputed.
        output: attention's output and log-sum-exp, which stay under ``--no-recompute-attention``.
        mlp_backward: most that the backward of the feed-forward half needs beside everything saved.
        attention_backward: the same of the attention half, less what the feed-forward half has let go; may be negative.
        exchanged: keys and values of other ranks and the fp32 accumulators of gradients, during that.
    """

    entry: int
    saved: int
    mlp: int
    output: int
    mlp_backward: int
    attention_backward: int
    exchanged: int


def layer_bytes(
    architecture: ModelArchitecture, ranks: Ranks, rows: int, element: int, *, fused: bool, exchange: ParallelConfig
) -> LayerBytes:
    """Count a layer.

    Args:
        architecture: the model.
        ranks: the layout.
        rows: rows of the packed sequence on this context rank.
        element: bytes of a number in the compute dtype.
        fused: weight gradients need no tensor of their own.
        exchange: how context ranks share keys and values.
    """
    width, heads = architecture.kv_channels, architecture.num_attention_heads // ranks.tp
    groups = architecture.num_query_groups // ranks.tp
    whole = rows * architecture.hidden_size * element  # hidden states of all rows of this context rank
    part = whole // ranks.sp
    query, key = rows * heads * width * element, rows * groups * width * element
    gate = rows * architecture.ffn_hidden_size // ranks.tp * element
    norm = part + rows // ranks.sp * FP32
    trades = ranks.cp > 1 and "a2a" in exchange.cp_comm_type  # then what attention keeps is not what the projection reads
    attention = (3 if trades else 2) * query + 2 * key + rows * heads * FP32
    if architecture.qk_layernorm:
        attention += query + key + rows * (heads + groups) * FP32
    mlp_weights = 0 if fused else 2 * architecture.hidden_size * architecture.ffn_hidden_size // ranks.tp * element
    gathered = whole if ranks.sp > 1 else 0

    # feed-forward: its second linear; then the gated unit, which has let go of the product; then its first linear
    second = part + gathered + gate + mlp_weights // 2
    unit = part + 2 * gate
    first = part - gate + whole + gathered + mlp_weights
    # attention: the residual's gradient, the output's, the fp32 accumulator of the query's, one block's
    held = part + 2 * query + query // element * FP32
    return LayerBytes(
        entry=part,
        saved=2 * (norm + part) + attention + 3 * gate,
        mlp=3 * gate,
        output=query + rows * heads * FP32,
        mlp_backward=max(second, unit, first),
        attention_backward=held - 3 * gate - norm - part,
        exchanged=_exchanged(2 * key, FP32 // element, ranks.cp, exchange.cp_comm_type),
    )


def _exchanged(own: int, widening: int, cp: int, kind: str) -> int:
    """Keys, values and their gradients of all ranks that are here at once, where ``own`` bytes are a rank's own.

    Beside the fp32 accumulators stand one block's gradients, of as many keys as there are here.
    """
    if cp == 1 or kind == "a2a":
        return own * widening + own
    if kind == "all_gather":
        return own + own * cp + own * widening * cp + own * cp
    # a ring: those attended to and those that arrive; the sum that arrives, the sum that leaves, and this step's
    return 2 * own + 3 * own * widening + own
