"""Metrics of a checkpoint on whole datasets, without training."""

from __future__ import annotations

import os

from megatron_longpo.config.context_layout import settle_exchange
from megatron_longpo.config.layout import check_layout
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.models.transformer_config import apply_overrides, virtual_pipeline_size
from megatron_longpo.parallel import state as parallel_state
from megatron_longpo.training.data import open_data
from megatron_longpo.training.pretrained import build_frozen_model, check_hardware, read_record
from megatron_longpo.training.reference import RunReference
from megatron_longpo.training.step import StepContext
from megatron_longpo.training.validation import evaluate


def score_dataset(config: RunConfig) -> dict[str, float]:
    """Metrics of ``--pretrained-checkpoint`` on every pair of ``--data-path``.

    Raises:
        UserError: if anything given does not fit.

    Parallel: all ranks; every rank gets the metrics.
    """
    checkpoint = config.model.pretrained_checkpoint
    assert checkpoint is not None
    record = read_record(checkpoint)
    architecture = apply_overrides(record.architecture, config.model, config.data.seq_length)
    check_layout(config.parallel, architecture, int(os.environ.get("WORLD_SIZE", "1")))
    check_hardware(config.training, architecture)
    config, _ = settle_exchange(config, architecture)
    data = open_data(config.data, config.training.seed, architecture)
    state = parallel_state.initialize(config.parallel, config.training.seed, virtual_pipeline_size(architecture, config.parallel))
    try:
        reference = RunReference(config, data, state)
        model = build_frozen_model(architecture, checkpoint, config.parallel, config.training, state)
        samples = [(number, index) for number, dataset in enumerate(data.datasets) for index in range(len(dataset))]
        context = StepContext(config.objective, len(samples), data.max_turns, state)
        return evaluate(model, samples, config, data, reference, context)
    finally:
        parallel_state.destroy()
