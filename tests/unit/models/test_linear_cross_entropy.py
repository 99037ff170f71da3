"""Chunked log-probs equal log-softmax of whole logits, at any chunk size, and never hold whole logits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.models.linear_cross_entropy import VocabShard, linear_log_probs
from megatron_longpo.utils.constants import IGNORE_INDEX

VOCAB, PADDED, HIDDEN = 37, 40, 12


def problem(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(PADDED, HIDDEN, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCAB, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.3] = IGNORE_INDEX
    return hidden, weight, labels


def naive(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    valid = labels != IGNORE_INDEX
    picked = torch.log_softmax(hidden @ weight[:VOCAB].t(), -1).gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(valid, picked, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1000))
def test_log_probs_and_gradients_do_not_depend_on_the_chunk(rows: int, chunk: int, seed: int) -> None:
    hidden, weight, labels = problem(rows, seed)
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    upstream[::3] = 0.0  # rows without weight are skipped
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    found = linear_log_probs(*ours, labels, VocabShard(0, VOCAB), chunk)
    expected = naive(*theirs, labels)
    assert torch.allclose(found, expected, atol=1e-12)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.grad, other.grad if other.grad is not None else torch.zeros_like(one), atol=1e-11)


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1000), st.sampled_from([-3.0, 0.0, 1e-6, 2.0]), st.booleans())
def test_weights_known_beforehand_change_no_gradient(rows: int, chunk: int, seed: int, factor: float, of_weight: bool) -> None:
    hidden, weight, labels = problem(rows, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    known = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    known[torch.rand(rows, generator=generator) < 0.4] = 0.0
    upstream = torch.where(known != 0, factor * known, torch.randn(rows, generator=generator, dtype=torch.float64))
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(of_weight)]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    found = linear_log_probs(*ours, labels, VocabShard(0, VOCAB), chunk, known)
    expected = naive(*theirs, labels)
    assert torch.allclose(found, expected, atol=1e-12)
    found.backward(upstream)
    expected.backward(upstream)
    assert torch.allclose(ours[0].grad, theirs[0].grad, atol=1e-11)
    if of_weight:
        assert torch.allclose(ours[1].grad, theirs[1].grad, atol=1e-11)
    else:
        assert ours[1].grad is None


def test_a_loss_that_weighs_known_rows_otherwise_is_refused() -> None:
    hidden, weight, labels = problem(30)
    known = torch.ones(30, dtype=torch.float64)
    log_probs = linear_log_probs(hidden.requires_grad_(), weight, labels, VocabShard(0, VOCAB), 8, known)
    with pytest.raises(ValueError, match="not those weights times one factor"):
        (log_probs * torch.linspace(1, 2, 30)).sum().backward()


def test_gradients_made_in_forward_serve_one_backward() -> None:
    hidden, weight, labels = problem(30)
    log_probs = linear_log_probs(
        hidden.requires_grad_(), weight, labels, VocabShard(0, VOCAB), 8, torch.ones(30, dtype=torch.float64)
    )
    log_probs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run forward again"):
        log_probs.sum().backward()


def test_scoring_computes_no_gradients_beforehand() -> None:
    hidden, weight, labels = problem(30)
    known = torch.ones(30, dtype=torch.float64)
    with torch.no_grad():
        scored = linear_log_probs(hidden, weight.requires_grad_(), labels, VocabShard(0, VOCAB), 8, known)
    assert torch.allclose(scored, naive(hidden, weight.detach(), labels), atol=1e-12)


def test_padding_rows_of_the_vocabulary_take_no_part() -> None:
    hidden, weight, labels = problem(20)
    loud = weight.clone()
    loud[VOCAB:] = 1e3
    shard = VocabShard(0, VOCAB)
    assert torch.equal(linear_log_probs(hidden, loud, labels, shard, 8), linear_log_probs(hidden, weight, labels, shard, 8))


def test_hidden_states_are_not_overwritten_and_backward_can_be_repeated() -> None:
    """Megatron-Core's own cross entropy overwrites fp32 logits in place and reuses the saved softmax."""
    hidden, weight, labels = problem(20)
    before = hidden.clone()
    hidden.requires_grad_()
    log_probs = linear_log_probs(hidden, weight, labels, VocabShard(0, VOCAB), 8)
    log_probs.sum().backward(retain_graph=True)
    first = hidden.grad.clone()
    hidden.grad = None
    log_probs.sum().backward()
    assert torch.equal(first, hidden.grad)
    assert torch.equal(before, hidden.detach())


MEASURE = """
import resource, sys, torch
from megatron_longpo.models.linear_cross_entropy import VocabShard, linear_log_probs
torch.set_num_threads(1)
rows, vocab, hidden = int(sys.argv[1]), 32000, 16
states = torch.randn(rows, hidden, requires_grad=True); weight = torch.randn(vocab, hidden, requires_grad=True)
labels = torch.randint(0, vocab, (rows,))
linear_log_probs(states[:64], weight, labels[:64], VocabShard(0, vocab), 64).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_log_probs(states, weight, labels, VocabShard(0, vocab), 64).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("rows", [4096])
def test_memory_of_the_head_does_not_grow_with_the_logits(rows: int) -> None:
    """Whole logits of 4096 x 32000 in fp32 would be 500 MiB, three times over; the chunks are 8 MiB each."""
    result = subprocess.run([sys.executable, "-c", MEASURE, str(rows)], capture_output=True, text=True, check=True)
    assert int(result.stdout) / 1024 < 60  # MiB
