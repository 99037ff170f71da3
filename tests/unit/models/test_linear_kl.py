"""Divergences from hidden states equal those of whole distributions, at any chunk size, and never hold whole distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_longpo.models.linear_cross_entropy import VocabShard
from megatron_longpo.models.linear_kl import linear_kl
from tests.support.workers import Workers

VOCAB, PADDED, HIDDEN, OTHER = 37, 40, 12, 7


def problem(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Hidden states and weights of a model and of a teacher of another width; rows of padding that must not count."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, HIDDEN), (PADDED, HIDDEN), (rows, OTHER), (PADDED, OTHER))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def naive(hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, teacher_weight: torch.Tensor) -> torch.Tensor:
    p = torch.softmax(hidden @ weight[:VOCAB].t(), -1)
    q = torch.softmax(teacher @ teacher_weight[:VOCAB].t(), -1)
    return (p * (p / q).log()).sum(-1)


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_divergences_and_gradients_do_not_depend_on_the_chunk(rows: int, chunk: int, seed: int, of_weight: bool) -> None:
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    ours, theirs = problem(rows, seed), problem(rows, seed)
    for tensors in (ours, theirs):
        tensors[0].requires_grad_()
        tensors[1].requires_grad_(of_weight)
    found, expected = linear_kl(*ours, VocabShard(0, VOCAB), chunk), naive(*theirs)
    assert torch.allclose(found, expected, atol=1e-12)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        if one.requires_grad:
            assert torch.allclose(one.grad, other.grad, atol=1e-11)


def test_a_model_does_not_diverge_from_itself() -> None:
    hidden, weight, *_ = problem(9, dtype=torch.float32)
    hidden.requires_grad_()
    found = linear_kl(hidden, weight, hidden.detach(), weight, VocabShard(0, VOCAB), 4)
    found.sum().backward()
    assert found.abs().max() < 1e-6
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-5


def test_a_word_that_a_model_rules_out_adds_nothing() -> None:
    hidden, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0], [0.5]])
    teacher = torch.tensor([[1.0]])
    found = linear_kl(hidden, weight, teacher, weight, VocabShard(0, 3), 1)
    assert torch.allclose(found, -torch.log_softmax(teacher @ weight.t(), -1)[:, 0])


def sharded(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Divergences, this rank's part of the gradient of the hidden states, and of its rows of the weight (in a worker)."""
    hidden, weight, teacher, teacher_weight = problem(rows)
    part = PADDED // dist.get_world_size()
    mine = slice(dist.get_rank() * part, (dist.get_rank() + 1) * part)
    hidden.requires_grad_()
    own = weight[mine].clone().requires_grad_()
    found = linear_kl(hidden, own, teacher, teacher_weight[mine], VocabShard.of(part, VOCAB, dist.group.WORLD), 5)
    (found * torch.arange(rows)).sum().backward()
    return found.detach(), hidden.grad, own.grad  # type: ignore[return-value]


@pytest.mark.slow
def test_shards_of_the_vocabulary_make_the_whole(workers: Workers) -> None:
    hidden, weight, teacher, teacher_weight = problem(13)
    hidden.requires_grad_()
    weight.requires_grad_()
    expected = naive(hidden, weight, teacher, teacher_weight)
    (expected * torch.arange(13)).sum().backward()
    found = workers.run(2, sharded, 13)
    for divergence, _, _ in found:
        assert torch.allclose(divergence, expected, atol=1e-12)
    assert torch.allclose(sum(part for _, part, _ in found), hidden.grad, atol=1e-11)
    assert torch.allclose(torch.cat([part for _, _, part in found]), weight.grad, atol=1e-11)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in torch.utils._pytree.tree_leaves(made) if torch.is_tensor(t))])
        return made


def test_no_tensor_holds_more_logits_than_a_chunk() -> None:
    rows, words, chunk = 256, 4096, 8
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(words, 4, requires_grad=True)
    with Largest() as seen:
        linear_kl(hidden, weight, torch.randn(rows, 4), torch.randn(words, 4), VocabShard(0, words), chunk).sum().backward()
    assert seen.elements == chunk * words
