"""Log-probabilities of targets straight from hidden states, without ``[s, v]`` logits.

The negative log-likelihood covers every token of a document, so logits for a whole sequence would be the largest tensor of a
run by far (128K tokens x 32K words in fp32: 17 GB, several times over). Rows are processed in chunks.

Of most rows the weight in the loss is known before the loss is, up to one factor that all share: they count in the NLL alone.
Forward computes their gradients while it has their logits, and backward multiplies by the factor. Of the others, the answers,
forward keeps one number a row, the log-sum-exp, and backward computes each chunk's logits again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.parallel.collectives import ProcessGroup, reduce_max, reduce_sum
from megatron_longpo.utils.constants import IGNORE_INDEX
from megatron_longpo.utils.logits import rows_at_once


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


class _Gradients:
    """Gradients under way: ``[s, h]`` of the hidden states, and ``[v/tp, h]`` in fp32 of the weight if it is wanted."""

    def __init__(self, hidden: Tensor, weight: Tensor, dtype: torch.dtype, *, of_weight: bool) -> None:
        self.hidden = hidden
        self.weight = torch.zeros_like(weight, dtype=dtype) if of_weight else None

    def add(self, rows: Tensor | slice, states: Tensor, words: Tensor, d_logits: Tensor, scale: Tensor) -> None:
        """Add a chunk's: ``d_logits`` times each row's ``scale``, which costs less on ``[h]`` than on ``[v]``."""
        d_logits, scale = d_logits.to(states.dtype), scale.to(torch.promote_types(states.dtype, torch.float32))[:, None]
        self.hidden[rows] = (d_logits @ words).mul_(scale)
        if self.weight is None:
            return
        states, held = (states * scale).to(states.dtype), self.weight[: words.size(0)]
        if held.dtype == states.dtype:
            held.addmm_(d_logits.t(), states)
        else:
            held += d_logits.t() @ states

    def scale(self, factor: Tensor) -> None:
        self.hidden *= factor.to(self.hidden.dtype)
        if self.weight is not None:
            self.weight *= factor.to(self.weight.dtype)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, known: Tensor | None, shard: VocabShard, chunk_size: int
    ) -> Tensor:
        words = weight[: shard.size]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        log_probs = torch.zeros(labels.shape, dtype=dtype, device=hidden.device)
        kept: Tensor | slice = slice(None)
        ctx.gradients = ctx.at_once = None
        if known is not None and any(ctx.needs_input_grad):
            at_once = (known != 0) & (labels != IGNORE_INDEX)
            if bool(at_once.any()):
                ctx.gradients = _Gradients(torch.zeros_like(hidden), weight, dtype, of_weight=ctx.needs_input_grad[1])
                for rows in _chunks(at_once, chunk_size):
                    states = hidden[rows]
                    logits = (states @ words.t()).to(dtype)
                    log_probs[rows], d_logits, total = _probabilities(logits, labels[rows], shard)
                    ctx.gradients.add(rows, states, words, d_logits, -known[rows] / total)
                    del logits, d_logits  # or they would stand beside the next chunk's
                ctx.at_once, kept = at_once, (~at_once).nonzero().squeeze(1)
        states, labels = hidden[kept], labels[kept]
        lse, target = _normalisers(states, words, labels, shard, chunk_size, dtype)
        log_probs[kept] = torch.where(labels != IGNORE_INDEX, target - lse, torch.zeros_like(lse))
        ctx.save_for_backward(states, weight, labels, lse, known)
        ctx.kept, ctx.rows, ctx.shard, ctx.chunk_size = kept, hidden.size(0), shard, chunk_size
        return log_probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        (grad,) = grads
        states, weight, labels, lse, known = ctx.saved_tensors
        shard: VocabShard = ctx.shard
        words = weight[: shard.size]
        if ctx.at_once is None:
            empty = states.new_zeros((ctx.rows, states.size(1)))
            gradients = _Gradients(empty, weight, lse.dtype, of_weight=ctx.needs_input_grad[1])
        elif ctx.gradients is None:
            raise RuntimeError("the gradients computed in forward are used up; run forward again")
        else:
            gradients, ctx.gradients = ctx.gradients, None
            gradients.scale(_common_factor(grad[ctx.at_once], known[ctx.at_once]))
        grad, kept = grad[ctx.kept], ctx.kept
        # a row without weight in the loss costs nothing
        for rows in _chunks((labels != IGNORE_INDEX) & (grad != 0), ctx.chunk_size) if shard.size else ():
            part = states[rows]
            d_logits = (part @ words.t()).to(lse.dtype).sub_(lse[rows, None]).exp_()
            column, held = local_column(labels[rows], shard)
            d_logits.scatter_add_(1, column[:, None], -held.to(lse.dtype)[:, None])
            gradients.add(rows if isinstance(kept, slice) else kept[rows], part, words, d_logits, -grad[rows])
            del d_logits
        return gradients.hidden, None if gradients.weight is None else gradients.weight.to(weight.dtype), None, None, None, None


def _normalisers(
    states: Tensor, words: Tensor, labels: Tensor, shard: VocabShard, chunk_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row's logits, and its label's logit, over all shards."""
    lse = torch.full(labels.shape, -torch.inf, dtype=dtype, device=states.device)
    target = torch.zeros_like(lse)
    for rows in _chunks(labels != IGNORE_INDEX, chunk_size) if shard.size else ():
        logits = (states[rows] @ words.t()).to(dtype)
        lse[rows] = torch.logsumexp(logits, dim=-1)
        column, held = local_column(labels[rows], shard)
        target[rows] = logits.gather(1, column[:, None]).squeeze(1) * held
    return _merge_shards(lse, target, labels, shard)


def _probabilities(logits: Tensor, labels: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of a chunk, and their gradients in ``logits``, which is overwritten. One pass of exponentials.

    Returns:
        The log-probs, and what divided by the negative of the third, ``[s]``, is each row's gradient.
    """
    column, held = local_column(labels, shard)
    if shard.size:
        top, target = logits.amax(-1), logits.gather(1, column[:, None]).squeeze(1) * held
    else:
        top, target = logits.new_full(labels.shape, -torch.inf), logits.new_zeros(labels.shape)
    if shard.group is not None:
        top = reduce_max(top, shard.group)
    d_logits = logits.sub_(top[:, None]).exp_()
    total, target = _reduced(d_logits.sum(-1), target, shard)
    if shard.size:
        d_logits.scatter_add_(1, column[:, None], (-total * held)[:, None])
    return target - top - total.log(), d_logits, total


def _common_factor(grad: Tensor, known: Tensor) -> Tensor:
    """The number that makes ``known`` the gradient.

    Raises:
        ValueError: if there is none: the loss is not the one whose weights were announced.
    """
    grad, known = grad.double(), known.double()
    factor = (grad @ known) / (known @ known)
    if bool((grad - factor * known).abs().max() > 1e-4 * grad.abs().max()):
        raise ValueError("the gradient of the rows with known weights is not those weights times one factor")
    return factor


def _chunks(valid: Tensor, chunk_size: int) -> list[Tensor | slice]:
    """Chunks of the valid rows, nearly equal ones: slices where a chunk is whole (no copy), indices elsewhere."""
    indices = valid.nonzero().squeeze(1)
    chunks: list[Tensor | slice] = []
    for part in indices.tensor_split(-(-indices.numel() // chunk_size) or 1):
        if part.numel():
            first, last = int(part[0]), int(part[-1])
            chunks.append(slice(first, last + 1) if last - first + 1 == part.numel() else part)
    return chunks


def local_column(labels: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
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
    total, target = _reduced((lse - largest).exp(), target, shard)
    return largest + total.log(), target


def _reduced(total: Tensor, target: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Sum over shards, in one reduction."""
    if shard.group is None:
        return total, target
    both = reduce_sum(torch.stack([total, target]), shard.group)
    return both[0], both[1]


def linear_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, shard: VocabShard, chunk_size: int, known_weights: Tensor | None = None
) -> Tensor:
    """Log-probability of each row's label under ``softmax(hidden @ weight.T)``.

    Args:
        hidden: ``[s, h]``; the same on every tensor-parallel rank.
        weight: this rank's rows of the output weight, ``[v/tp, h]``.
        labels: word ids ``[s]`` int64, `IGNORE_INDEX` where a row has no target.
        shard: which words the rows of ``weight`` stand for.
        chunk_size: rows of logits that exist at once, at most; see `rows_at_once`.
        known_weights: ``[s]``: what the loss's gradient will be in each row's log-prob, up to one factor common to all rows that
            are not 0; 0 where it is not known. Backward checks it, and can then run only once.

    Returns:
        ``[s]`` in fp32 (fp64 for fp64 input); 0 where the label is `IGNORE_INDEX`.

    Parallel: over the tensor group, forward: two all-reduces of ``[s]`` for the rows of unknown weight, and two a chunk for the
    others; none backward: the gradient of ``hidden`` is this rank's part, to be summed by whatever brought ``hidden`` into the
    tensor-parallel region.
    """
    rows = rows_at_once(chunk_size, weight.size(0))
    return _LinearLogProbs.apply(hidden, weight, labels, known_weights, shard, rows)
