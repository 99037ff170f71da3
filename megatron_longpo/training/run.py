"""From a configuration to a trained model: the stages of a run in order."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_longpo.config.cli import dump_config
from megatron_longpo.config.context_layout import describe_exchange, settle_exchange
from megatron_longpo.config.layout import check_layout
from megatron_longpo.config.loss_types import reference_contexts
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.conversion.record import ModelRecord
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.flops import step_flops
from megatron_longpo.models.gpt import build_model
from megatron_longpo.models.lora import add_adapters
from megatron_longpo.models.transformer_config import apply_overrides, virtual_pipeline_size
from megatron_longpo.parallel import state as parallel_state
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.training.adapters import adapter_record, check_adapters
from megatron_longpo.training.checkpoint import Checkpointer, TrainState, check_save_directory, has_checkpoint, load_weights
from megatron_longpo.training.data import RunData, open_data, total_train_samples
from megatron_longpo.training.eval_tasks import EvalSample, open_eval_tasks
from megatron_longpo.training.logs import RunLog
from megatron_longpo.training.loop import Run, train
from megatron_longpo.training.memory_options import check_offload, check_recompute
from megatron_longpo.training.optimizer import Schedule, build_optimizer
from megatron_longpo.training.pretrained import check_hardware, read_record
from megatron_longpo.training.reference import RunReference
from megatron_longpo.training.step import StepContext, wrap_data_parallel
from megatron_longpo.training.task_evaluation import TaskEvaluation


def pretrain(config: RunConfig) -> TrainState:
    """Run a whole training.

    Returns:
        The progress that was reached: less than asked for if a signal stopped the run.

    Raises:
        UserError: if anything given does not fit; before a model is built wherever that can be known.
    """
    assert config.model.pretrained_checkpoint is not None
    check_save_directory(config.checkpoint.save, config.checkpoint.load)
    record = read_record(config.model.pretrained_checkpoint)
    architecture = apply_overrides(record.architecture, config.model, config.data.seq_length)
    check_layout(config.parallel, architecture, int(os.environ.get("WORLD_SIZE", 1)))
    check_hardware(config.training, architecture)
    check_recompute(config, architecture)
    check_offload(config, architecture.num_layers)
    config, reason = settle_exchange(config, architecture)
    check_adapters(config, record)
    samples = open_eval_tasks(config, architecture)
    data = open_data(config.data, config.training.seed, architecture)
    state = parallel_state.initialize(config.parallel, config.training.seed, virtual_pipeline_size(architecture, config.parallel))
    try:
        return _pretrain(config, record, architecture, data, samples, state, reason)
    finally:
        parallel_state.destroy()


def _pretrain(
    config: RunConfig,
    record: ModelRecord,
    architecture: ModelArchitecture,
    data: RunData,
    samples: Sequence[EvalSample],
    state: ParallelState,
    exchange_reason: str,
) -> TrainState:
    if config.training.deterministic_mode:
        torch.use_deterministic_algorithms(True, warn_only=True)
    reference = RunReference(config, data, state)
    train_iters = total_train_samples(config, data) // config.training.global_batch_size
    resuming = has_checkpoint(config.checkpoint.load)
    model = wrap_data_parallel(_initial_model(config, architecture, state, resuming=resuming), config)
    reference.share(model)
    optimizer = build_optimizer(config, model)
    trained = record.after_training(architecture, describe_training(config, train_iters))
    trained = dataclasses.replace(trained, adapters=adapter_record(config))
    if config.model.random_init:
        trained = dataclasses.replace(trained, base_weights_sha256=None)
    checkpointer = Checkpointer(model, optimizer, state, trained, dump_config(config))
    assert config.checkpoint.load is not None or not resuming
    train_state = checkpointer.load(str(config.checkpoint.load)) if resuming else TrainState()
    log = RunLog(config, train_iters, train_state.iteration + 1, is_writer=state.rank == 0)
    log.say(_opening(config, architecture, state, model, data, train_state))
    if samples:
        log.say(f"evaluation tasks: {', '.join(dict.fromkeys(label for sample in samples for label in sample.labels))}")
    if exchange_reason:
        log.say(f"context exchange {describe_exchange(config.parallel)}: {exchange_reason}")
    context = StepContext(config.objective, config.training.global_batch_size, data.max_turns, state)
    schedule = Schedule(config.optimizer, train_iters)
    flops = step_flops(architecture)
    tasks = TaskEvaluation(samples, config, state) if samples else None
    run = Run(config, model, optimizer, schedule, data, reference, checkpointer, context, train_iters, flops, tasks)
    try:
        return train(run, train_state, log)
    finally:
        log.close()


def _initial_model(config: RunConfig, architecture: ModelArchitecture, state: ParallelState, *, resuming: bool) -> Any:
    model = build_model(architecture, config.parallel, config.training, state)
    with_adapters = config.lora.lora_rank is not None
    if with_adapters or not (resuming or config.model.random_init):
        load_weights(model, str(config.model.pretrained_checkpoint))
    if with_adapters:
        add_adapters(model, config.lora, config.training.seed)
    return model


def describe_training(config: RunConfig, train_iters: int) -> dict[str, Any]:
    """What the model card tells about a training."""
    objective, optimizer = config.objective, config.optimizer
    start = {"initial weights": "random"} if config.model.random_init else {}
    contexts = reference_contexts(objective, config.reference)
    record = adapter_record(config)
    adapters = {"LoRA": f"rank {record.rank}, alpha {record.alpha:g}, on {', '.join(record.target_modules)}"} if record else {}
    return {
        **start,
        **adapters,
        "beta": objective.beta,
        **({"preference loss": objective.loss_type} if objective.preference_weight else {}),
        "preference weight": objective.preference_weight,
        "NLL weight": objective.nll_weight,
        "NLL scope": objective.nll_scope,
        **({"reference context": " and ".join(contexts)} if contexts else {}),
        "optimizer": optimizer.optimizer,
        "peak learning rate": optimizer.lr,
        "iterations": train_iters,
        "global batch size": config.training.global_batch_size,
        "sequence length": config.data.seq_length,
    }


def _opening(
    config: RunConfig,
    architecture: ModelArchitecture,
    state: ParallelState,
    model: Sequence[DistributedDataParallel],
    data: RunData,
    train_state: TrainState,
) -> str:
    parameters = [parameter for chunk in model for parameter in chunk.parameters()]
    here, trained = (sum(p.numel() for p in some) for some in (parameters, [p for p in parameters if p.requires_grad]))
    size = f"{here:,} parameters on this rank" + (f" ({trained:,} trained)" if trained < here else "")
    start = f"from {config.model.pretrained_checkpoint}"
    if train_state.iteration:
        start = f"resuming after iteration {train_state.iteration}"
    groups = (("tp", state.tp_group), ("cp", state.cp_group), ("pp", state.pp_group), ("dp", state.dp_group))
    parts = [
        f"{architecture.family}, {size}, RoPE base {architecture.rotary_base:g}",
        " ".join(f"{name} {group.size()}" for name, group in groups),
        f"{sum(len(dataset) for dataset in data.datasets)} pairs, {len(data.validation)} held out",
        start,
    ]
    return " | ".join(parts)
