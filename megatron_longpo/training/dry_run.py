"""What a run would do and need, told from its configuration, checkpoint record and data. No model is built, no process joined."""

from __future__ import annotations

from megatron_longpo.config.cli import DryRun
from megatron_longpo.config.context_layout import settle_exchange
from megatron_longpo.config.layout import check_layout
from megatron_longpo.config.loss_types import reference_contexts
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.loader import SampleId
from megatron_longpo.data.packing import PackingOptions
from megatron_longpo.estimation.flops import pair_flops
from megatron_longpo.estimation.layouts import Machine, Plan, evaluate
from megatron_longpo.estimation.report import GIB, gib, table
from megatron_longpo.estimation.shape import PairShape
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.transformer_config import apply_overrides
from megatron_longpo.training.data import RunData, needed_rows, open_data, pair_size, total_train_samples
from megatron_longpo.training.eval_tasks import open_eval_tasks
from megatron_longpo.training.memory_options import check_recompute
from megatron_longpo.training.pretrained import read_record
from megatron_longpo.utils.progress import progress_bar


def describe_run(config: RunConfig, dry_run: DryRun) -> str:
    """Describe a run in a few lines.

    Args:
        config: the whole configuration.
        dry_run: number of devices, and their memory.

    Raises:
        UserError: where the run itself would refuse to start for its configuration, checkpoint, layout or data.
    """
    record = read_record(str(config.model.pretrained_checkpoint))
    architecture = apply_overrides(record.architecture, config.model, config.data.seq_length)
    check_layout(config.parallel, architecture, dry_run.num_devices)
    check_recompute(config, architecture)
    config, reason = settle_exchange(config, architecture, ranks_per_node=min(8, dry_run.num_devices))
    open_eval_tasks(config, architecture)
    data = open_data(config.data, config.training.seed, architecture)
    shape = longest_pair(data, needed_rows(config))
    plan = evaluate(architecture, config, shape, Machine(num_devices=dry_run.num_devices, device_bytes=0))
    lines = [
        *_essentials(config, architecture, data, shape),
        f"context exchange: {config.parallel.cp_comm_type}, {reason}" if reason else "",
        f"memory in GiB of the fullest rank (stage {plan.memory.stage}, in the {plan.memory.moment}), by arithmetic:",
        table([plan]),
        _verdict(plan, dry_run),
    ]
    return "\n".join(line for line in lines if line)


def longest_pair(data: RunData, options: PackingOptions) -> PairShape:
    """The pair with the most rows."""
    samples = [(number, index) for number, dataset in enumerate(data.datasets) for index in range(len(dataset))]
    shapes = (_shape(data, sample, options) for sample in samples)
    return max(progress_bar(shapes, desc="Reading lengths", total=len(samples), unit="pair"), key=lambda shape: shape.rows)


def _shape(data: RunData, sample: SampleId, options: PackingOptions) -> PairShape:
    dataset, index = data.datasets[sample[0]], sample[1]
    chosen, rejected = dataset.lengths(index)
    tail = min(chosen, rejected) - dataset.shared_prefix_length(index)
    packed = pair_size(data, sample, options)
    return PairShape(length=max(chosen, rejected), tail=tail, prefix_sharing=options.prefix_sharing, packed=packed)


def _essentials(config: RunConfig, architecture: ModelArchitecture, data: RunData, shape: PairShape) -> list[str]:
    objective, training, optimizer = config.objective, config.training, config.optimizer
    iterations = total_train_samples(config, data) // training.global_batch_size
    pairs, held_out = sum(len(indices) for indices in data.train_indices), len(data.validation)
    flops = training.global_batch_size * pair_flops(architecture, shape)
    return [
        f"model: {architecture.family}, {architecture.num_layers} layers of {architecture.hidden_size}, RoPE base "
        f"{architecture.rotary_base:g}, {'bf16' if training.bf16 else 'fp32'}, from {config.model.pretrained_checkpoint}",
        f"objective: beta {objective.beta:g}, preference weight {objective.preference_weight:g}, NLL weight "
        f"{objective.nll_weight:g} on {objective.nll_scope}; {_preference(config)}",
        f"optimizer: {optimizer.optimizer}, peak learning rate {optimizer.lr:g}, {optimizer.lr_decay_style}",
        f"data: {pairs} pairs to train on, {held_out} held out; the longest has {shape.rows} rows",
        f"training: {iterations} iterations of {training.global_batch_size} pairs, at most {flops / 1e12:.4g} TFLOP each",
    ]


def _preference(config: RunConfig) -> str:
    if not config.objective.preference_weight:
        return "no preference"
    contexts = " and ".join(reference_contexts(config.objective, config.reference))
    return f"{config.objective.loss_type}; " + (
        f"reference: {config.reference.reference}, {contexts} context" if contexts else "no reference"
    )


def _verdict(plan: Plan, dry_run: DryRun) -> str:
    if dry_run.device_gib is None:
        return ""
    fits = "fits" if plan.memory.peak <= dry_run.device_gib * GIB else "does not fit"
    return f"{gib(plan.memory.peak)} GiB {fits} a device of {dry_run.device_gib:g} GiB (driver and NCCL want some too)"
