"""The core attention: planned blocks, exact with a shared prefix, over any context-parallel size and head count.

Keys and values are gathered over the context group into sequence order, used by one plan, and dropped; the backward gathers
them again, so that no layer keeps more than its own shard.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longpo.models.attention_kernels import block_backward, block_forward
from megatron_longpo.models.attention_plan import AttentionPlan
from megatron_longpo.models.rotary import rotate
from megatron_longpo.parallel.collectives import ProcessGroup, gather_sequence, reduce_scatter_sequence


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """What every layer's attention needs to know of a micro-batch. Travels as Megatron-Core's ``packed_seq_params``.

    Attributes:
        plan: blocks of this rank's queries against all keys in sequence order.
        cos: rotary cosines of this rank's rows, ``[s/cp, d]`` fp32.
        sin: rotary sines, the same.
        qkv_format: tells Megatron-Core that the layout stays ``[s, b, n, d]``.
    """

    plan: AttentionPlan
    cos: Tensor
    sin: Tensor
    qkv_format: str = "sbhd"


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _Merged:
    """Running output and log-sum-exp of blocks, fp32 (fp64 for fp64). A row's first block is copied, later ones are merged."""

    def __init__(self, query: Tensor) -> None:
        batch, heads, rows, dim = query.shape
        dtype = _accumulation_dtype(query)
        self.out = torch.zeros(batch, rows, heads, dim, dtype=dtype, device=query.device).transpose(1, 2)
        self.lse = torch.full((batch, heads, rows), -math.inf, dtype=dtype, device=query.device)
        self._seen: list[tuple[int, int]] = []

    def add(self, start: int, end: int, out: Tensor, lse: Tensor) -> None:
        edges = sorted({start, end} | {edge for run in self._seen for edge in run if start < edge < end})
        for first, last in itertools.pairwise(edges):
            part = slice(first - start, last - start)
            if any(a <= first and last <= b for a, b in self._seen):
                self._merge(first, last, out[:, :, part], lse[:, :, part])
            else:
                self.out[:, :, first:last] = out[:, :, part]
                self.lse[:, :, first:last] = lse[:, :, part]
                self._seen.append((first, last))

    def _merge(self, first: int, last: int, out: Tensor, lse: Tensor) -> None:
        old_out, old_lse = self.out[:, :, first:last], self.lse[:, :, first:last]
        lse = lse.to(old_lse.dtype)
        share = torch.sigmoid(lse - old_lse).unsqueeze(-1)  # softmax over the two blocks
        old_out.add_((out.to(old_out.dtype) - old_out).mul_(share))
        self.lse[:, :, first:last] = torch.logaddexp(old_lse, lse)


class PlannedAttention(torch.autograd.Function):
    """Attention by blocks with keys gathered over the context group. ``[b, n, s/cp, d]`` in and out.

    Parallel: all-gather of K/V over the context group in forward and again in backward; reduce-scatter of dK/dV in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float, cp_group: ProcessGroup
    ) -> Tensor:
        """Attend by the plan's blocks."""
        all_keys, all_values = _gather_key_values(key, value, cp_group)
        merged = _Merged(query)
        for block in plan.blocks:
            rows, keys = slice(block.q_start, block.q_end), slice(block.k_start, block.k_end)
            out, lse = block_forward(
                query[:, :, rows], all_keys[:, :, keys], all_values[:, :, keys], causal=block.causal, scale=scale
            )
            merged.add(block.q_start, block.q_end, out, lse)
        result = merged.out.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, merged.lse)
        ctx.plan, ctx.scale, ctx.cp_group = plan, scale, cp_group
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients of query, key and value."""
        (grad,) = grads
        query, key, value, out, lse = ctx.saved_tensors
        all_keys, all_values = _gather_key_values(key, value, ctx.cp_group)
        dtype = _accumulation_dtype(query)
        d_query = torch.zeros_like(query, dtype=dtype)
        d_keys, d_values = torch.zeros_like(all_keys, dtype=dtype), torch.zeros_like(all_values, dtype=dtype)
        for block in ctx.plan.blocks:
            rows, keys = slice(block.q_start, block.q_end), slice(block.k_start, block.k_end)
            block_grads = block_backward(
                *(states[:, :, rows] for states in (grad, query)),
                *(states[:, :, keys] for states in (all_keys, all_values)),
                *(states[:, :, rows] for states in (out, lse)),
                causal=block.causal,
                scale=ctx.scale,
            )
            d_query[:, :, rows] += block_grads[0]
            d_keys[:, :, keys] += block_grads[1]
            d_values[:, :, keys] += block_grads[2]
        d_key, d_value = _scatter_key_values(d_keys, d_values, ctx.cp_group)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _gather_key_values(key: Tensor, value: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """``2 x [b, g, s/cp, d] -> 2 x [b, g, s, d]``, in sequence order."""
    if group.size() == 1:
        return key, value
    both = torch.stack([key, value]).permute(3, 0, 1, 2, 4)  # [s/cp, 2, b, g, d]
    return tuple(gather_sequence(both, group).permute(1, 2, 3, 0, 4).unbind(0))  # type: ignore[return-value]


def _scatter_key_values(d_keys: Tensor, d_values: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Transpose of `_gather_key_values`: sums over ranks."""
    if group.size() == 1:
        return d_keys, d_values
    both = torch.stack([d_keys, d_values]).permute(3, 0, 1, 2, 4)  # [s, 2, b, g, d]
    return tuple(reduce_scatter_sequence(both, group).permute(1, 2, 3, 0, 4).unbind(0))  # type: ignore[return-value]


class PackedCoreAttention(MegatronModule):
    """Core attention for Megatron-Core's layer specs.

    Rotates queries and keys by their packed positions, then attends by the micro-batch's plan. Constructor and ``forward``
    have the signature that Megatron-Core calls a core attention with.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any = None,
        attention_type: str = "self",
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **unused: Any,
    ) -> None:
        """Take what Megatron-Core passes; the mask type and communication type are ours, so theirs are not read."""
        super().__init__(config=config)
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ValueError("attention dropout is not supported: chosen and rejected share a prefix")
        self.layer_number = layer_number
        self.cp_group = pg_collection.cp
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedAttention | None = None,
        **unused: Any,
    ) -> Tensor:
        """Attend.

        Args:
            query: ``[s/cp, b, n/tp, d]``.
            key: ``[s/cp, b, g/tp, d]``.
            value: like ``key``.
            attention_mask: not used; the plan is the mask.
            attn_mask_type: not used.
            attention_bias: not supported.
            packed_seq_params: the micro-batch's plan and rotary tables.
            **unused: what other core attentions take.

        Returns:
            ``[s/cp, b, n/tp * d]``.
        """
        if packed_seq_params is None:
            raise ValueError("PackedCoreAttention needs a PackedAttention in packed_seq_params")
        query = rotate(query, packed_seq_params.cos, packed_seq_params.sin)
        key = rotate(key, packed_seq_params.cos, packed_seq_params.sin)
        heads_first = (states.permute(1, 2, 0, 3) for states in (query, key, value))  # [s, b, n, d] -> [b, n, s, d]
        out = PlannedAttention.apply(*heads_first, packed_seq_params.plan, self.scale, self.cp_group)
        return out.permute(2, 0, 1, 3).flatten(2)  # [b, n, s, d] -> [s, b, n*d]
