"""Metrics on held-out pairs, forward only."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.data.loader import SampleId, rank_batches
from megatron_longpo.parallel.pipeline import run_schedule
from megatron_longpo.training.data import RunData, packing_options
from megatron_longpo.training.reference import RunReference
from megatron_longpo.training.step import StepContext, batch_loss, reduce_reports

_MICRO_BATCHES_AT_ONCE = 8


def evaluate(
    model: Sequence[torch.nn.Module],
    samples: Sequence[SampleId],
    config: RunConfig,
    data: RunData,
    reference: RunReference,
    context: StepContext,
) -> dict[str, float]:
    """Metrics of ``samples`` as one batch: means over its pairs, whatever the layout.

    Args:
        model: this rank's model chunks.
        samples: pairs, the same on every rank; data-parallel ranks divide them.
        config: objective and micro-batch size.
        data: where they come from.
        reference: the run's reference.
        context: the run's step context.

    Returns:
        Metrics, the same on every rank.

    Parallel: the pipeline schedule; metrics over data-parallel and pipeline groups.
    """
    state = context.state
    mine = samples[state.dp_group.rank() :: state.dp_group.size()]
    size = config.training.micro_batch_size
    micro_batches = [mine[start : start + size] for start in range(0, len(mine), size)]
    modes = [chunk.training for chunk in model]
    for chunk in model:
        chunk.eval()
    reports: list[dict[str, Any]] = []
    for start in range(0, len(micro_batches), _MICRO_BATCHES_AT_ONCE):
        part = micro_batches[start : start + _MICRO_BATCHES_AT_ONCE]
        options = packing_options(config, state)
        batches = list(rank_batches(part, data.datasets, reference.source(part), options, state))
        reports += run_schedule(_forward(context, len(batches)), model, batches, forward_only=True)
    for chunk, was_training in zip(model, modes, strict=True):
        chunk.train(was_training)
    return reduce_reports(reports, context)


def _forward(context: StepContext, count: int) -> Any:
    def forward(iterator: Iterator[RankBatch], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(iterator)
        return chunk(batch.packed), functools.partial(batch_loss, batch, context=context, num_microbatches=count)

    return forward
