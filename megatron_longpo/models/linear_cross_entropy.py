"""Log-probabilities of targets straight from hidden states, without ``[s, v]`` logits.

The negative log-likelihood covers every token of a document, so logits for a whole sequence would be the largest tensor of a
run by far
(128K tokens x 32K words in fp32: 17 GB, several times over). Rows are processed in chunks; forward keeps one number a row,
the log-sum-exp, and backward computes each chunk's logits again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.parallel.collectives import ProcessGroup, reduce_max, reduce_sum
from megatron_longpo.utils.constants import IGNORE_INDEX


@dataclasses.dataclass(frozen=True)
class VocabShard:
    """Which words a tensor-parallel rank's rows of the output weight stand for.

    Attributes:
        start: word id of the first row.
        size: number of rows that are words; rows beyond it are padding and take no part in the softmax.
        group: the tensor-parallel group.
    """

    start: int
    size: int
    group: ProcessGroup | None = None

    @classmethod
    def of(cls, rows: int, vocab_size: int, group: ProcessGroup) -> VocabShard:
        """The shard of this rank when each rank holds ``rows`` rows of a vocabulary padded to ``rows * tp``."""
        start = group.rank() * rows
        return cls(start, min(max(vocab_size - start, 0), rows), group)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, shard: VocabShard, chunk_size: int) -> Tensor:
        words = weight[: shard.size]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        lse = torch.full(labels.shape, -torch.inf, dtype=dtype, device=hidden.device)
        target = torch.zeros_like(lse)
        for rows in _valid_chunks(labels != IGNORE_INDEX, chunk_size):
            logits = (hidden[rows] @ words.t()).to(dtype)
            if shard.size:
                lse[rows] = torch.logsumexp(logits, dim=-1)
            column, held = _local_column(labels[rows], shard)
            if shard.size:
                target[rows] = logits.gather(1, column[:, None]).squeeze(1) * held
        lse, target = _merge_shards(lse, target, labels, shard)
        ctx.save_for_backward(hidden, weight, labels, lse)
        ctx.shard, ctx.chunk_size = shard, chunk_size
        return torch.where(labels != IGNORE_INDEX, target - lse, torch.zeros_like(lse))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        hidden, weight, labels, lse = ctx.saved_tensors
        shard: VocabShard = ctx.shard
        words = weight[: shard.size]
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=lse.dtype)
        # a row without weight in the loss costs nothing
        for rows in _valid_chunks((labels != IGNORE_INDEX) & (grad != 0), ctx.chunk_size):
            if not shard.size:
                continue
            states, scale = hidden[rows], grad[rows].to(lse.dtype)
            d_logits = (states @ words.t()).to(lse.dtype).sub_(lse[rows, None]).exp_().mul_(-scale[:, None])
            column, held = _local_column(labels[rows], shard)
            d_logits.scatter_add_(1, column[:, None], (scale * held)[:, None])
            d_logits = d_logits.to(hidden.dtype)
            d_hidden[rows] = d_logits @ words
            d_weight[: shard.size] += d_logits.t() @ states
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _valid_chunks(valid: Tensor, chunk_size: int) -> list[Tensor | slice]:
    """Chunks of the valid rows: slices where a chunk is whole (no copy), indices elsewhere."""
    indices = valid.nonzero().squeeze(1)
    chunks: list[Tensor | slice] = []
    for part in indices.split(chunk_size):
        if part.numel():
            first, last = int(part[0]), int(part[-1])
            chunks.append(slice(first, last + 1) if last - first + 1 == part.numel() else part)
    return chunks


def _local_column(labels: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Column of each label in this shard, and whether it is held here: a mask of its own, since word ``start`` has column 0."""
    column = labels - shard.start
    held = (column >= 0) & (column < shard.size)
    return column.clamp(0, max(shard.size - 1, 0)), held


def _merge_shards(lse: Tensor, target: Tensor, labels: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Combine the ranks' log-sum-exps and targets: two reductions of ``[s]`` for the whole sequence."""
    if shard.group is None or shard.group.size() == 1:
        return lse, target
    largest = reduce_max(lse.clone(), shard.group)
    largest = torch.where(labels != IGNORE_INDEX, largest, torch.zeros_like(largest))
    both = reduce_sum(torch.stack([(lse - largest).exp(), target]), shard.group)
    return largest + both[0].log(), both[1]


def linear_log_probs(hidden: Tensor, weight: Tensor, labels: Tensor, shard: VocabShard, chunk_size: int) -> Tensor:
    """Log-probability of each row's label under ``softmax(hidden @ weight.T)``.

    Args:
        hidden: ``[s, h]``; the same on every tensor-parallel rank.
        weight: this rank's rows of the output weight, ``[v/tp, h]``.
        labels: word ids ``[s]`` int64, `IGNORE_INDEX` where a row has no target.
        shard: which words the rows of ``weight`` stand for.
        chunk_size: rows of logits that exist at once.

    Returns:
        ``[s]`` in fp32 (fp64 for fp64 input); 0 where the label is `IGNORE_INDEX`.

    Parallel: two all-reduces of ``[s]`` over the tensor group forward; none backward: the gradient of ``hidden`` is this
    rank's part, to be summed by whatever brought ``hidden`` into the tensor-parallel region.
    """
    return _LinearLogProbs.apply(hidden, weight, labels, shard, chunk_size)
