"""Metrics on held-out pairs, forward only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.loader import SampleId
from megatron_longpo.training.batches import micro_batches_in_order
from megatron_longpo.training.data import RunData, packing_options
from megatron_longpo.training.reference import RunReference
from megatron_longpo.training.step import StepContext, reduce_reports, run_batches

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
        config: objective and size of micro-batches.
        data: where they come from.
        reference: the run's reference.
        context: the run's step context.

    Returns:
        Metrics, the same on every rank.

    Parallel: the pipeline schedule; metrics over data-parallel and pipeline groups.
    """
    state = context.state
    mine = samples[state.dp_group.rank() :: state.dp_group.size()]
    options = packing_options(config, state)
    micro_batches = micro_batches_in_order(mine, config, data, options)
    reports: list[dict[str, Any]] = []
    with in_evaluation_mode(model):
        for start in range(0, len(micro_batches), _MICRO_BATCHES_AT_ONCE):
            part = micro_batches[start : start + _MICRO_BATCHES_AT_ONCE]
            reports += run_batches(model, reference.batches(part, options), context, forward_only=True)
    return reduce_reports(reports, context)


@contextlib.contextmanager
def in_evaluation_mode(model: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Keep model chunks in evaluation mode; afterwards they are as they were."""
    modes = [chunk.training for chunk in model]
    for chunk in model:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, was_training in zip(model, modes, strict=True):
            chunk.train(was_training)
