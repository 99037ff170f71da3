"""Norm and gated unit compute what PyTorch's own operators do, and keep no more for the backward than they say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_longpo.models.norm import RMSNorm
from megatron_longpo.models.swiglu import SwiGLU

ROWS, WIDTH = 5, 12


def norm(dtype: torch.dtype) -> RMSNorm:
    module = RMSNorm(SimpleNamespace(params_dtype=dtype, sequence_parallel=False), WIDTH, eps=1e-3)
    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return module


def plain_swiglu(states: Tensor) -> Tensor:
    gate, up = states.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def kept(function: Callable[[Tensor], Tensor], states: Tensor, parameters: list[Tensor]) -> int:
    """Numbers that the graph of a function keeps, by storage, parameters aside."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function(states)
    return sum(size for pointer, size in storages.items() if pointer not in {p.data_ptr() for p in parameters})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_norm_is_pytorch_s(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    module, upstream = norm(dtype), torch.randn(ROWS, 1, WIDTH, dtype=dtype)
    ours, theirs = (torch.randn(ROWS, 1, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2))
    weight = module.weight.detach().clone().requires_grad_()
    expected = torch.nn.functional.rms_norm(theirs.requires_grad_(), (WIDTH,), weight, 1e-3)
    found = module(ours.requires_grad_())
    expected.backward(upstream)
    found.backward(upstream)
    assert found.dtype == expected.dtype
    for one, other in ((found, expected), (ours.grad, theirs.grad), (module.weight.grad, weight.grad)):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_the_gated_unit_is_silu_times_up(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    ours = torch.randn(ROWS, 1, 2 * WIDTH, dtype=dtype)
    theirs, upstream = ours.clone().requires_grad_(), torch.randn(ROWS, 1, WIDTH, dtype=dtype)
    found, expected = SwiGLU(None)(ours.requires_grad_()), plain_swiglu(theirs)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)


def test_they_keep_their_input_and_little_else() -> None:
    module = norm(torch.float32)
    states = torch.randn(ROWS, 1, WIDTH, requires_grad=True)
    assert kept(module, states, [module.weight]) == ROWS * WIDTH + ROWS
    gated = torch.randn(ROWS, 1, 2 * WIDTH, requires_grad=True)
    assert kept(SwiGLU(None), gated, []) == ROWS * 2 * WIDTH
    assert kept(plain_swiglu, gated, []) > ROWS * 2 * WIDTH, "the count sees what PyTorch's own graph keeps"


def test_a_head_norm_does_not_keep_what_its_input_is_a_slice_of() -> None:
    module = norm(torch.float32)
    mixed = torch.randn(ROWS, 1, 4, 3 * WIDTH, requires_grad=True)
    states = mixed[..., WIDTH : 2 * WIDTH]
    assert kept(module, states, [module.weight]) == ROWS * 4 * WIDTH + ROWS * 4
