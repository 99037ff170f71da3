"""Every block of a plan against attention written out in float64, given what the layer's backward gives a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_longpo.models.attention_kernels import AttentionKernel
from megatron_longpo.models.attention_plan import build_plan
from megatron_longpo.parallel.context_parallel import Run
from megatron_longpo.parallel.packed_sequence import Chain
from tests.unit.models.test_attention_plan import dense_mask

SCALE = 0.125


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of masked attention with grouped heads."""
    groups = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2) * SCALE).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, mask: Tensor) -> list[Tensor]:
    """Gradients of one block's query, key and value, where ``out`` and ``lse`` are those of all blocks of its queries."""
    groups = query.size(1) // key.size(1)
    wide_key, wide_value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    shares = (query @ wide_key.transpose(-1, -2) * SCALE - lse.unsqueeze(-1)).exp() * mask
    d_shares = grad @ wide_value.transpose(-1, -2)
    d_scores = shares * (d_shares - (grad * out).sum(-1, keepdim=True)) * SCALE
    wide = d_scores.transpose(-1, -2) @ query, shares.transpose(-1, -2) @ grad
    return [d_scores @ wide_key, *(states.unflatten(1, (-1, groups)).sum(2) for states in wide)]


def assert_close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail unless the largest error is a small part of the largest value."""
    assert found.shape == expected.shape, name
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{name}: {error:.2e} of the largest value"


def check_blocks(kernel: AttentionKernel, chains: tuple[Chain, ...], states: tuple[Tensor, ...], tolerance: float) -> None:
    """Run a kernel forward and backward on each block of a packed sequence.

    Args:
        kernel: what is checked.
        chains: the packed sequence.
        states: query ``[1, n, s, d]``, key and value ``[1, g, s, d]``, gradient of the output, on the kernel's device.
        tolerance: bound of each tensor's error, as a part of its largest value.
    """
    # strides of a layer's tensors, [s, b, n, d]
    query, key, value, grad = (tensor.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for tensor in states)
    whole = (Run(0, chains[-1].end, 0),)
    mask = torch.from_numpy(dense_mask(chains)).to(query.device)
    exact_out, exact_lse = attend(query.double(), key.double(), value.double(), mask)
    out = exact_out.transpose(1, 2).contiguous().transpose(1, 2).to(query.dtype)
    lse = exact_lse.to(torch.promote_types(query.dtype, torch.float32))
    # a slice of a longer one, so that no block's is contiguous, of whichever rows it is
    lse = torch.nn.functional.pad(lse, (0, 1))[:, :, :-1]
    for block in build_plan(chains, whole, whole).blocks:
        rows, seen = slice(block.q_start, block.q_end), slice(block.k_start, block.k_end)
        visible = torch.ones(block.q_end - block.q_start, block.k_end - block.k_start, dtype=torch.bool, device=query.device)
        visible = visible.tril() if block.causal else visible
        inputs = query[:, :, rows], key[:, :, seen], value[:, :, seen]
        upstream, merged = grad[:, :, rows], (out[:, :, rows], lse[:, :, rows])
        assert not merged[1].is_contiguous()
        found = kernel.forward(*inputs, block.causal, SCALE) + kernel.backward(upstream, *inputs, *merged, block.causal, SCALE)
        exact = [tensor.double() for tensor in (*inputs, upstream, *merged)]
        expected = (*attend(*exact[:3], visible), *gradients(exact[3], *exact[:3], *exact[4:], visible))
        for name, one, other in zip(("output", "log-sum-exp", "d query", "d key", "d value"), found, expected, strict=True):
            assert_close(f"{name} of {block}", one, other, tolerance)
