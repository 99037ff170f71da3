"""On a GPU: planned attention errs no more than twice as much as PyTorch's own masked attention in the same precision."""

from __future__ import annotations

import pytest
import torch

from megatron_longpo.models.attention import PlannedAttention
from megatron_longpo.models.attention_plan import AttentionPlan, build_plan
from megatron_longpo.parallel.context_exchange import ContextExchange
from megatron_longpo.parallel.context_parallel import Run
from tests.unit.models.test_attention import TREES, dense, inputs
from tests.unit.models.test_attention_plan import dense_mask


def planned(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    rows_first = (states.permute(2, 0, 1, 3) for states in (query, key, value))
    return PlannedAttention.apply(*rows_first, (plan,), 0.125, ContextExchange()).permute(1, 2, 0, 3)


@pytest.mark.parametrize("tree", TREES)
def test_planned_attention_on_cuda_is_as_exact_as_bf16_allows(tree: str) -> None:
    chains = TREES[tree]
    total = chains[-1].end
    whole = (Run(0, total, 0),)
    mask = torch.from_numpy(dense_mask(chains)).cuda()
    *states, grad = (tensor.cuda() for tensor in inputs(total, torch.bfloat16, dim=64))
    exact = [state.double().requires_grad_() for state in states]
    expected = dense(*exact, mask, 0.125)
    expected.backward(grad.double())
    errors = []
    for attend in (
        lambda q, k, v: planned(q, k, v, build_plan(chains, whole, whole)),
        lambda q, k, v: dense(q, k, v, mask, 0.125),
    ):
        leaves = [state.clone().requires_grad_() for state in states]
        out = attend(*leaves)
        out.backward(grad)
        pairs = [(out, expected), *((leaf.grad, other.grad) for leaf, other in zip(leaves, exact, strict=True))]
        errors.append([(one.double() - other).abs().max().item() for one, other in pairs])
    for ours, plain in zip(*errors, strict=True):
        assert ours <= 2 * plain + 1e-6
