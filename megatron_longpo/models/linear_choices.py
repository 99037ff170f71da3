"""Whether greedy decoding would choose the targets, and their log-probs, without ``[s, v]`` logits. Forward only."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_longpo.models.linear_cross_entropy import VocabShard, local_column
from megatron_longpo.parallel.collectives import reduce_max, reduce_sum
from megatron_longpo.utils.constants import IGNORE_INDEX
from megatron_longpo.utils.logits import rows_at_once


@torch.no_grad()
def linear_choices(hidden: Tensor, weight: Tensor, labels: Tensor, shard: VocabShard, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Score each row's label under ``softmax(hidden @ weight.T)``.

    Args:
        hidden: ``[s, h]``; the same on every tensor-parallel rank.
        weight: this rank's rows of the output weight, ``[v/tp, h]``.
        labels: word ids ``[s]`` int64, `IGNORE_INDEX` where a row has no target.
        shard: which words the rows of ``weight`` stand for.
        chunk_size: rows of logits that exist at once, at most; see `rows_at_once`.

    Returns:
        Log-prob of each label, ``[s]`` in fp32 (fp64 for fp64 input), and whether the label is the word with the highest
        logit, of several such words the first, ``[s]`` bool; 0 and False where there is no label.

    Parallel: over the tensor group, two maxima and a sum of a number or two for each row that has a label.
    """
    log_probs = hidden.new_zeros(labels.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    rows = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    if rows.numel():
        log_probs[rows], chosen[rows] = _score(hidden[rows], weight[: shard.size], labels[rows], shard, chunk_size)
    return log_probs, chosen


def _score(states: Tensor, words: Tensor, labels: Tensor, shard: VocabShard, chunk_size: int) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(states.dtype, torch.float32)
    top = torch.full(labels.shape, -torch.inf, dtype=dtype, device=states.device)
    lse, target = top.clone(), torch.zeros_like(top)
    first = torch.zeros_like(labels)
    column, held = local_column(labels, shard)
    for rows in torch.arange(labels.numel(), device=labels.device).split(rows_at_once(chunk_size, words.size(0))):
        if not shard.size:
            break
        logits = (states[rows] @ words.t()).to(dtype)
        top[rows], best = logits.amax(-1), logits.argmax(-1)  # of equal ones, argmax gives the first
        first[rows] = best + shard.start
        lse[rows] = torch.logsumexp(logits, dim=-1)
        target[rows] = logits.gather(1, column[rows][:, None]).squeeze(1) * held[rows]
    if shard.group is None:
        return target - lse, first == labels
    highest = reduce_max(top.clone(), shard.group)
    total, target = reduce_sum(torch.stack([(lse - highest).exp(), target]), shard.group)
    none = torch.full_like(first, torch.iinfo(first.dtype).max)
    first = -reduce_max(-torch.where(top == highest, first, none), shard.group)
    return target - highest - total.log(), first == labels
