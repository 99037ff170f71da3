"""Choices are those of argmax on whole logits, at any chunk size, with the first of equal ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.models.linear_choices import linear_choices
from megatron_longpo.models.linear_cross_entropy import VocabShard
from megatron_longpo.utils.constants import IGNORE_INDEX

VOCAB, PADDED, HIDDEN = 11, 14, 6


def problem(rows: int, seed: int, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, weight and labels; whole numbers make equal logits, labels are often the right ones."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(PADDED, HIDDEN, generator=generator, dtype=torch.float64)
    if whole:
        hidden, weight = hidden.round(), weight.round()
    best = (hidden @ weight[:VOCAB].t()).argmax(-1)
    other = torch.randint(0, VOCAB, (rows,), generator=generator)
    labels = torch.where(torch.rand(rows, generator=generator) < 0.5, best, other)
    labels[torch.rand(rows, generator=generator) < 0.3] = IGNORE_INDEX
    return hidden, weight, labels


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000), st.booleans())
def test_choices_and_log_probs_are_those_of_whole_logits(rows: int, chunk: int, seed: int, whole: bool) -> None:
    hidden, weight, labels = problem(rows, seed, whole=whole)
    log_probs, chosen = linear_choices(hidden, weight, labels, VocabShard(0, VOCAB), chunk)
    logits, valid = hidden @ weight[:VOCAB].t(), labels != IGNORE_INDEX
    picked = torch.log_softmax(logits, -1).gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    assert torch.allclose(log_probs, torch.where(valid, picked, 0.0), atol=1e-12)
    first = torch.tensor([row.index(max(row)) for row in logits.tolist()])
    assert torch.equal(chosen, valid & (first == labels))


def test_rows_without_a_label_alone_are_no_error() -> None:
    hidden, weight, labels = problem(4, 0, whole=False)
    log_probs, chosen = linear_choices(hidden, weight, torch.full_like(labels, IGNORE_INDEX), VocabShard(0, VOCAB), 2)
    assert not log_probs.any()
    assert not chosen.any()


def test_scores_are_in_fp32_for_narrower_states() -> None:
    hidden, weight, labels = problem(9, 1, whole=False)
    log_probs, _ = linear_choices(hidden.bfloat16(), weight.bfloat16(), labels, VocabShard(0, VOCAB), 4)
    assert log_probs.dtype == torch.float32
