"""Kullback-Leibler divergence between the next-token distributions of two models, straight from hidden states.

Both distributions are over the whole vocabulary, which is sharded; neither is ever held for more rows than a chunk. Forward
keeps three numbers a row, the two log-sum-exps and the divergence, and backward computes each chunk's logits again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_longpo.models.linear_cross_entropy import VocabShard
from megatron_longpo.parallel.collectives import reduce_max, reduce_sum
from megatron_longpo.utils.logits import rows_at_once

LOGITS_AT_ONCE = 3
"""Tensors of a chunk's size that stand side by side: both models' logits, and what is made of them."""


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, shard: VocabShard, chunk_size: int
    ) -> Tensor:
        words, teacher_words = weight[: shard.size], teacher_weight[: shard.size]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        kept = torch.zeros(3, hidden.size(0), dtype=dtype, device=hidden.device)
        for start in range(0, hidden.size(0), chunk_size):
            rows = slice(start, start + chunk_size)
            ours, theirs = _logits(hidden[rows], words, dtype), _logits(teacher[rows], teacher_words, dtype)
            lse = _log_sum_exp(torch.stack([_local_lse(ours), _local_lse(theirs)]), shard)
            log_p, log_q = ours.sub_(lse[0][:, None]), theirs.sub_(lse[1][:, None])
            divergence = log_p.exp().mul_(log_p.sub_(log_q)).sum(-1)
            kept[:, rows] = torch.stack([*lse, _over_shards(divergence, shard)])
            del ours, theirs, log_p, log_q  # or they would stand beside the next chunk's
        ctx.save_for_backward(hidden, weight, teacher, teacher_weight, kept)
        ctx.shard, ctx.chunk_size = shard, chunk_size
        return kept[2].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        hidden, weight, teacher, teacher_weight, kept = ctx.saved_tensors
        shard: VocabShard = ctx.shard
        words, teacher_words = weight[: shard.size], teacher_weight[: shard.size]
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=kept.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.size(0), ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            lse, teacher_lse, divergence = kept[:, rows, None]
            log_p = _logits(hidden[rows], words, kept.dtype).sub_(lse)
            log_q = _logits(teacher[rows], teacher_words, kept.dtype).sub_(teacher_lse)
            # d KL / d logit = p * (log p - log q - KL)
            d_logits = log_p.exp().mul_(log_p.sub_(log_q).sub_(divergence)).mul_(grads[0][rows, None])
            d_logits = d_logits.to(hidden.dtype)
            d_hidden[rows] = d_logits @ words
            if d_weight is not None:
                d_weight[: shard.size] += d_logits.t() @ hidden[rows]
            del log_p, log_q, d_logits
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None


def _logits(states: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    return (states @ words.t()).to(dtype)


def _local_lse(logits: Tensor) -> Tensor:
    """Log-sum-exp over this shard's words; minus infinity where it has none."""
    return torch.logsumexp(logits, dim=-1) if logits.size(1) else logits.new_full((logits.size(0),), -torch.inf)


def _log_sum_exp(lse: Tensor, shard: VocabShard) -> Tensor:
    """Log-sum-exps over all shards, of any shape."""
    if shard.group is None or shard.group.size() == 1:
        return lse
    largest = reduce_max(lse.clone(), shard.group)
    return largest + reduce_sum((lse - largest).exp(), shard.group).log()


def _over_shards(values: Tensor, shard: VocabShard) -> Tensor:
    return values if shard.group is None else reduce_sum(values, shard.group)


def linear_kl(
    hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, shard: VocabShard, chunk_size: int
) -> Tensor:
    """Divergence of each row, ``KL(softmax(hidden @ weight.T) || softmax(teacher @ teacher_weight.T))``, in nats.

    Args:
        hidden: ``[n, h]``; the same on every tensor-parallel rank.
        weight: this rank's rows of the output weight, ``[v/tp, h]``.
        teacher: ``[n, g]``; no gradient flows into it.
        teacher_weight: this rank's rows of the teacher's output weight, ``[v/tp, g]``.
        shard: which words the rows of both weights stand for.
        chunk_size: rows of logits that exist at once, at most; see `rows_at_once`.

    Returns:
        ``[n]`` in fp32 (fp64 for fp64 input).

    Parallel: over the tensor group, forward: three all-reduces of a few numbers a row, each chunk; none backward: the gradient of
    ``hidden`` is this rank's part, as in `linear_log_probs`.
    """
    rows = rows_at_once(chunk_size, LOGITS_AT_ONCE * weight.size(0))
    return _LinearKL.apply(hidden, weight, teacher, teacher_weight, shard, rows)
