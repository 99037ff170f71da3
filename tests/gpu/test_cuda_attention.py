"""On a GPU: each library's kernels, block by block and as planned attention."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_longpo.models import attention_kernels
from megatron_longpo.models.attention import PlannedAttention
from megatron_longpo.models.attention_kernels import (
    AttentionKernel,
    _cuda_backward,
    _cuda_forward,
    _package_backward,
    _package_forward,
)
from megatron_longpo.models.attention_plan import AttentionPlan, build_plan
from megatron_longpo.parallel.context_exchange import ContextExchange
from megatron_longpo.parallel.context_parallel import Run
from megatron_longpo.parallel.packed_sequence import Chain
from tests.support.attention_blocks import SCALE, check_blocks
from tests.unit.models import test_attention
from tests.unit.models.test_attention import dense, inputs
from tests.unit.models.test_attention_plan import dense_mask

# the long one has blocks of many of a kernel's tiles
TREES = {**test_attention.TREES, "long pair": (Chain(0, 700), Chain(700, 333, parent=0, attach=517))}
KERNELS = {
    "PyTorch": AttentionKernel("PyTorch's CUDA flash attention", _cuda_forward, _cuda_backward),
    "flash-attn": AttentionKernel("flash-attn", _package_forward, _package_backward),
}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> AttentionKernel:
    if request.param == "flash-attn":
        pytest.importorskip("flash_attn")
    return KERNELS[request.param]


def on_gpu(length: int, dim: int) -> tuple[torch.Tensor, ...]:
    """Query of six heads, key and value of two, and the gradient of the output, in bf16."""
    return tuple(tensor.cuda() for tensor in inputs(length, torch.bfloat16, dim=dim))


# in bf16 the CPU's kernel errs by up to 0.009 of the largest value
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("tree", TREES)
def test_each_block_is_attention_written_out(tree: str, dim: int, kernel: AttentionKernel) -> None:
    check_blocks(kernel, TREES[tree], on_gpu(TREES[tree][-1].end, dim), 2e-2)


def planned(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    rows_first = (states.permute(2, 0, 1, 3) for states in (query, key, value))
    return PlannedAttention.apply(*rows_first, (plan,), SCALE, ContextExchange()).permute(1, 2, 0, 3)


@pytest.mark.parametrize("tree", TREES)
def test_planned_attention_is_masked_attention_in_bf16(
    tree: str, kernel: AttentionKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "select_kernel", lambda device, dtype, head_dim: kernel)
    chains = TREES[tree]
    whole = (Run(0, chains[-1].end, 0),)
    *states, grad = on_gpu(chains[-1].end, 64)
    exact = [state.double().requires_grad_() for state in states]
    expected = dense(*exact, torch.from_numpy(dense_mask(chains)).to(grad.device), SCALE)
    expected.backward(grad.double())
    leaves = [state.clone().requires_grad_() for state in states]
    found = planned(*leaves, build_plan(chains, whole, whole))
    found.backward(grad)
    pairs = [(found, expected), *((leaf.grad, other.grad) for leaf, other in zip(leaves, exact, strict=True))]
    for name, (one, other) in zip(("output", "d query", "d key", "d value"), pairs, strict=True):
        # with the CPU's kernel in bf16: up to 0.008
        assert (one.double() - other).norm() / other.norm() <= 2e-2, name


@pytest.fixture
def determinism() -> Iterator[None]:
    """What a run asks of PyTorch unless it is told not to."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("determinism")
def test_flash_attn_s_backward_repeats_itself_bit_for_bit() -> None:
    pytest.importorskip("flash_attn")
    query, key, value, grad = on_gpu(4096, 128)
    out, lse = _package_forward(query, key, value, True, SCALE)
    first, *others = (_package_backward(grad, query, key, value, out, lse, True, SCALE) for _ in range(4))
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
