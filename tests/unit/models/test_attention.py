"""Planned attention equals dense masked attention, forward and backward."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_longpo.models import attention_kernels
from megatron_longpo.models.attention import PackedAttention, PackedCoreAttention, PlannedAttention
from megatron_longpo.models.attention_kernels import (
    AttentionKernel,
    _cpu_backward,
    _cpu_forward,
    _package_backward,
    _package_forward,
    block_backward,
    block_forward,
    select_kernel,
)
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


class FlashAttnPackage(ModuleType):
    """Stands for flash-attn's interface: checks what it is given, and answers with PyTorch's CPU kernel."""

    def __init__(self) -> None:
        super().__init__("flash_attn.flash_attn_interface")
        self._flash_attn_forward, self._flash_attn_backward = self.forward, self.backward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, return_softmax: bool, **plain: Any) -> tuple[Tensor | None, ...]:
        assert not return_softmax
        out, lse = _cpu_forward(*(states.transpose(1, 2) for states in (q, k, v)), *self.checked(**plain))
        return out.transpose(1, 2), lse, None, None

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
        *, deterministic: bool, rng_state: Any = None, **plain: Any,
    ) -> None:  # fmt: skip
        assert not deterministic
        assert softmax_lse.is_contiguous()
        heads_second = [states.transpose(1, 2) for states in (dout, q, k, v, out)]
        for made, grad in zip((dq, dk, dv), _cpu_backward(*heads_second, softmax_lse, *self.checked(**plain)), strict=True):
            assert made.is_contiguous()
            made.copy_(grad.transpose(1, 2))

    @staticmethod
    def checked(
        *, dropout_p: float, softmax_scale: float, causal: bool, window_size_left: int, window_size_right: int, softcap: float,
        alibi_slopes: Any,
    ) -> tuple[bool, float]:  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
        return causal, softmax_scale


@pytest.mark.parametrize("tree", TREES)
def test_flash_attn_gets_what_makes_it_the_same_attention(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself needs a GPU; names, order, layout and alignment of its arguments are checked against its signature."""
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", FlashAttnPackage())
    package = AttentionKernel("flash-attn", _package_forward, _package_backward)
    monkeypatch.setattr(attention_kernels, "select_kernel", lambda device, dtype: package)
    test_planned_attention_is_dense_attention(tree, torch.float64, 1e-12)


def test_the_kernel_is_chosen_by_device_precision_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = select_kernel.__wrapped__
    assert "CPU" in chosen("cpu", torch.float32).name
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "PyTorch's CUDA" in chosen("cuda", torch.bfloat16).name
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "flash_attn" else None)
    assert chosen("cuda", torch.float16).name == "flash-attn"
    with pytest.raises(UserError, match=r"needs --bf16: flash kernels do not take float32"):
        chosen("cuda", torch.float32)


@pytest.mark.parametrize("causal", [True, False])
def test_cuda_operators_accept_the_arguments_they_are_given(causal: bool) -> None:
    """On fake CUDA tensors: signatures, ranks and dtypes are checked by PyTorch's own shape functions; nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        del mode
        query = torch.empty(1, 8, 64, 64, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(1, 8, 64, 64, device="cuda", dtype=torch.bfloat16)
        out, lse = block_forward(query, key, key, causal=causal, scale=0.125)
        assert out.shape == query.shape
        assert out.dtype == torch.bfloat16
        assert lse.shape == (1, 8, 64)
        assert lse.dtype == torch.float32
        grads = block_backward(out, query, key, key, out, lse, causal=causal, scale=0.125)
        assert [grad.shape for grad in grads] == [query.shape, key.shape, key.shape]
