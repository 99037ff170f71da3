"""The core attention: planned blocks, exact with a shared prefix, whatever way the ranks exchange keys, values and heads."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_longpo.models.attention_kernels import block_backward, block_forward
from megatron_longpo.models.attention_plan import AttentionPlan
from megatron_longpo.models.rotary import rotate
from megatron_longpo.parallel.context_exchange import ContextExchange
from megatron_longpo.parallel.packed_sequence import Chain


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """What every layer's attention needs to know of a micro-batch. Travels as Megatron-Core's ``packed_seq_params``.

    Attributes:
        plans: blocks of this rank's queries against the keys of each step of the exchange.
        exchange: how ranks share keys and values.
        chains: of the whole packed sequence.
        cos: rotary cosines of this rank's rows, ``[s/cp, d]`` fp32.
        sin: rotary sines, the same.
        kept: where recomputed layers leave attention's output for their second run, by layer number; None to attend again.
        qkv_format: tells Megatron-Core that the layout stays ``[s, b, n, d]``.
    """

    plans: tuple[AttentionPlan, ...]
    exchange: ContextExchange
    chains: tuple[Chain, ...]
    cos: Tensor
    sin: Tensor
    kept: dict[int, list[Tensor]] | None = None
    qkv_format: str = "sbhd"

    def memo(self, layer: int) -> list[Tensor] | None:
        """`PlannedAttention`'s memo for a layer: in a first run without a graph a place to fill, in the second what it holds."""
        if self.kept is None:
            return None
        if torch.is_grad_enabled():
            return self.kept.pop(layer, None)
        return self.kept.setdefault(layer, [])


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


def _heads_first(states: Tensor) -> Tensor:
    """``[s, b, n, d] -> [b, n, s, d]``, a view."""
    return states.permute(1, 2, 0, 3)


class PlannedAttention(torch.autograd.Function):
    """Attention by blocks: ``[s, b, n, d]`` queries, ``[s, b, g, d]`` keys and values of this rank's rows; output like queries.

    Parallel: `ContextExchange.forward` in forward; `ContextExchange.backward` in backward, which brings the keys and values
    of other ranks again, so that no layer keeps more than its own shard, or what that was traded for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plans: Sequence[AttentionPlan],
        scale: float,
        exchange: ContextExchange,
        memo: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend by the plans' blocks. A filled ``memo`` holds output and log-sum-exp already; an empty one gets them."""
        out, lse = memo or PlannedAttention._attend(query, key, value, plans, scale, exchange)
        if memo == []:
            memo += [out, lse]
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plans, ctx.scale, ctx.exchange = plans, scale, exchange
        return out.permute(2, 0, 1, 3)

    @staticmethod
    def _attend(
        query: Tensor, key: Tensor, value: Tensor, plans: Sequence[AttentionPlan], scale: float, exchange: ContextExchange
    ) -> tuple[Tensor, Tensor]:
        queries = _heads_first(query)
        merged = _Merged(queries)

        def attend(step: int, keys: Tensor, values: Tensor) -> None:
            keys, values = _heads_first(keys), _heads_first(values)
            for block in plans[step].blocks:
                rows, seen = slice(block.q_start, block.q_end), slice(block.k_start, block.k_end)
                out, lse = block_forward(
                    queries[:, :, rows], keys[:, :, seen], values[:, :, seen], causal=block.causal, scale=scale
                )
                merged.add(block.q_start, block.q_end, out, lse)

        exchange.forward(key, value, attend)
        return merged.out.to(query.dtype), merged.lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, out, lse = ctx.saved_tensors
        grad, queries = _heads_first(grads[0]), _heads_first(query)
        dtype = _accumulation_dtype(query)
        d_query = torch.zeros_like(query, dtype=dtype)
        d_queries = _heads_first(d_query)

        def attend(step: int, keys: Tensor, values: Tensor, d_keys: Tensor, d_values: Tensor) -> None:
            keys, values, d_keys, d_values = map(_heads_first, (keys, values, d_keys, d_values))
            for block in ctx.plans[step].blocks:
                rows, seen = slice(block.q_start, block.q_end), slice(block.k_start, block.k_end)
                block_grads = block_backward(
                    *(states[:, :, rows] for states in (grad, queries)),
                    *(states[:, :, seen] for states in (keys, values)),
                    *(states[:, :, rows] for states in (out, lse)),
                    causal=block.causal,
                    scale=ctx.scale,
                )
                d_queries[:, :, rows] += block_grads[0]
                d_keys[:, :, seen] += block_grads[1]
                d_values[:, :, seen] += block_grads[2]

        d_key, d_value = ctx.exchange.backward(key, value, dtype, attend)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), None, None, None, None


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
        **unused: Any,
    ) -> None:
        """Take what Megatron-Core passes; mask, communication and groups come with each micro-batch, so theirs are not read."""
        super().__init__(config=config)
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ValueError("attention dropout is not supported: chosen and rejected share a prefix")
        self.layer_number = layer_number
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
        cos, sin = packed_seq_params.cos, packed_seq_params.sin
        query, key = (rotate(states, cos, sin) for states in (query, key))
        return self.attend(query, key, value, packed_seq_params)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedAttention) -> Tensor:
        """Attend with rotated queries and keys; shapes as in `forward`."""
        exchange = packed.exchange
        value = value.contiguous()  # a view would keep the projection's whole output, queries and keys included
        query, key, value = (exchange.to_heads(states) for states in (query, key, value))
        memo = packed.memo(self.layer_number)
        out = exchange.to_sequence(PlannedAttention.apply(query, key, value, packed.plans, self.scale, exchange, memo))
        return out.flatten(2)  # [s, b, n, d] -> [s, b, n*d]
