"""Reference log-probs of pairs under a frozen model: what fills the cache, and what a live reference computes in the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_longpo.config.schema import ReferenceContext
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.data.loader import PairDataset, SampleId, rank_batch
from megatron_longpo.data.packing import PackingOptions, PackItem, short_pairs
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.reference.scoring import score_batches


def reference_logps(
    model: Sequence[torch.nn.Module],
    samples: Sequence[SampleId],
    datasets: Sequence[PairDataset],
    context: ReferenceContext,
    state: ParallelState,
) -> dict[SampleId, np.ndarray]:
    """Score this data-parallel rank's samples.

    Args:
        model: the frozen model's chunks.
        samples: this rank's samples, the same on all ranks that share them.
        datasets: where they come from.
        context: ``short``: each turn's short context alone, one chat a turn; ``long``: the long chat with same-side history.
        state: groups.

    Returns:
        ``[t, 2]`` float64 sums over (chosen, rejected) answers, by sample.

    Parallel: the pipeline schedule; the tensor, context and pipeline groups.
    """
    if not samples:
        return {}
    options = PackingOptions(nll_scope=None, multiple=state.sequence_multiple)
    batches = [_reference_batch(datasets[sample[0]], sample, context, options, state) for sample in samples]
    scored = score_batches(model, batches, state)
    # short: [t, 1, 2], one pair a turn; long: [1, t, 2]
    return {sample: sums.answers.reshape(-1, 2).numpy() for sample, sums in zip(samples, scored, strict=True)}


def _reference_batch(
    dataset: PairDataset, sample: SampleId, context: ReferenceContext, options: PackingOptions, state: ParallelState
) -> RankBatch:
    items = None
    if state.tp_group.rank() == 0:
        pair = dataset[sample[1]]
        items = [PackItem(part, sample_id=sample) for part in (short_pairs(pair) if context == "short" else [pair])]
    return rank_batch(items, options, state)
