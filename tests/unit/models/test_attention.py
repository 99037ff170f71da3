"""Planned attention equals dense masked attention, forward and backward."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_longpo.models.attention import PackedAttention, PackedCoreAttention, PlannedAttention
from megatron_longpo.models.attention_kernels import block_backward, block_forward
from megatron_longpo.models.attention_plan import build_plan
from megatron_longpo.models.engine_attention import EngineCoreAttention
from megatron_longpo.models.layer_spec import core_attention
from megatron_longpo.models.transformer_config import uses_transformer_engine
from megatron_longpo.parallel.context_exchange import ContextExchange
from megatron_longpo.parallel.context_parallel import Run
from megatron_longpo.parallel.packed_sequence import Chain
from megatron_longpo.utils.errors import UserError
from tests.unit.models.test_attention_plan import dense_mask

TREES = {
    "one chain": (Chain(0, 70),),
    "pair": (Chain(0, 90), Chain(90, 23, parent=0, attach=60)),
    "pair and padding": (Chain(0, 50), Chain(50, 9, parent=0, attach=49), Chain(59, 5)),
    "two pairs": (Chain(0, 40), Chain(40, 11, parent=0, attach=30), Chain(51, 33), Chain(84, 8, parent=2, attach=20)),
    "grandchild": (Chain(0, 40), Chain(40, 21, parent=0, attach=33), Chain(61, 9, parent=1, attach=7)),
}


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    groups = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ value


def inputs(length: int, dtype: torch.dtype, heads: int = 6, groups: int = 2, dim: int = 16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, dim), (1, groups, length, dim), (1, groups, length, dim), (1, heads, length, dim)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("tree", TREES)
def test_planned_attention_is_dense_attention(tree: str, dtype: torch.dtype, tolerance: float) -> None:
    chains = TREES[tree]
    total = chains[-1].end
    whole = (Run(0, total, 0),)
    *states, grad = inputs(total, dtype)
    ours = [state.clone().requires_grad_() for state in states]
    rows_first = (state.permute(2, 0, 1, 3) for state in ours)
    plans = (build_plan(chains, whole, whole),)
    out: Any = PlannedAttention.apply(*rows_first, plans, 0.25, ContextExchange()).permute(1, 2, 0, 3)
    out.backward(grad)
    exact = [state.double().requires_grad_() for state in states]
    expected = dense(*exact, torch.from_numpy(dense_mask(chains)), 0.25)
    expected.backward(grad.double())
    assert (out.double() - expected).abs().max() < tolerance
    for one, other in zip(ours, exact, strict=True):
        assert (one.grad.double() - other.grad).abs().max() < tolerance


def test_the_merged_output_and_not_the_block_s_own_goes_into_a_block_s_backward() -> None:
    query, key, value, grad = inputs(40, torch.float64)
    exact = [state.clone().requires_grad_() for state in (query, key, value)]
    dense(*exact, torch.ones(40, 40, dtype=torch.bool), 0.25).backward(grad)
    halves = [
        block_forward(query, key[:, :, part], value[:, :, part], causal=False, scale=0.25)
        for part in (slice(0, 20), slice(20, 40))
    ]
    lse = torch.logaddexp(halves[0][1], halves[1][1])
    out = sum(half[0] * (half[1] - lse).exp().unsqueeze(-1) for half in halves)
    d_query = sum(
        block_backward(grad, query, key[:, :, part], value[:, :, part], out, lse, causal=False, scale=0.25)[0]
        for part in (slice(0, 20), slice(20, 40))
    )
    assert (d_query - exact[0].grad).abs().max() < 1e-12


def test_a_causal_block_of_unequal_lengths_is_refused() -> None:
    """Libraries differ in how they align it."""
    query, key, value, _ = inputs(8, torch.float32)
    with pytest.raises(ValueError, match="as many queries as keys"):
        block_forward(query[:, :, :4], key, value, causal=True, scale=1.0)


class Engine(torch.nn.Module):
    """Stands for ``TEDotProductAttention``: sequence first, flat heads out, causal; checks what it is given."""

    def __init__(self, *, config: Any, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str) -> None:
        super().__init__()
        assert attn_mask_type is AttnMaskType.causal
        assert (layer_number, attention_type) == (3, "self")
        self.scale = config.kv_channels**-0.5

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: None, *, attn_mask_type: AttnMaskType) -> Tensor:
        assert mask is None
        assert attn_mask_type is AttnMaskType.causal
        causal = torch.ones(len(query), len(query), dtype=torch.bool).tril()
        out = dense(*(states.permute(1, 2, 0, 3) for states in (query, key, value)), causal, self.scale)
        return out.permute(2, 0, 1, 3).flatten(2)


@pytest.mark.parametrize("tree", TREES)
def test_transformer_engine_s_attention_gets_each_chain_by_itself(tree: str) -> None:
    chains = TREES[tree]
    total = chains[-1].end
    whole = (Run(0, total, 0),)
    config = SimpleNamespace(attention_dropout=0.0, kv_channels=16, window_size=None)
    angles = torch.arange(total)[:, None] * torch.linspace(0.1, 1, 8).repeat(2)
    plans = (build_plan(chains, whole, whole),)
    packed = PackedAttention(plans, ContextExchange(), chains, angles.cos(), angles.sin())
    states = [state.permute(2, 0, 1, 3) for state in inputs(total, torch.float64)[:3]]
    arguments = {"attn_mask_type": AttnMaskType.padding, "attention_type": "self"}
    ours = PackedCoreAttention(config, 3, **arguments)(*states, None, packed_seq_params=packed)
    theirs = EngineCoreAttention(config, 3, engine=Engine, **arguments)(*states, None, packed_seq_params=packed)
    assert (ours - theirs).abs().max() < 1e-12


def test_transformer_engine_s_attention_is_refused_where_it_cannot_run() -> None:
    assert core_attention("auto") is core_attention("flash") is PackedCoreAttention
    if not uses_transformer_engine():
        with pytest.raises(UserError, match="needs Transformer Engine and a GPU"):
            core_attention("te")
