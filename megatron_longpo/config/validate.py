"""What makes a configuration a run: one function a rule, and every broken rule is told at once.

A rule yields messages; each says both values and the cure. Whether a layout fits the model is asked later, when the
checkpoint's architecture is known (`config.layout.check_layout`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

from megatron_longpo.config.fields import all_fields, flag_of
from megatron_longpo.config.layout import data_parallel_size, world_problems
from megatron_longpo.config.loss_types import OWN_SETTINGS, traits_of
from megatron_longpo.config.schema import RunConfig
from megatron_longpo.utils.errors import UserError

LENGTH_GROUP = ("train_iters", "train_samples", "num_epochs")
WARMUP_GROUP = ("lr_warmup_fraction", "lr_warmup_iters")
MICRO_BATCH_GROUP = ("micro_batch_size", "micro_batch_tokens")
EXCLUSIVE_GROUPS = (LENGTH_GROUP, WARMUP_GROUP, MICRO_BATCH_GROUP)
"""Settings of which at most one may be given in one place."""

Rule = Callable[[RunConfig, int], Iterator[str]]


def validate_config(config: RunConfig, *, world_size: int = 1) -> None:
    """Check a whole configuration.

    Args:
        config: the resolved configuration.
        world_size: number of processes of the run.

    Raises:
        UserError: some rule is broken; one line for each problem.
    """
    problems = [message for rule in RULES for message in rule(config, world_size)]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} problems in the configuration:", *problems]))


def numbers_in_range(config: RunConfig, world_size: int) -> Iterator[str]:
    """Every number lies in the range that its meaning allows."""
    for info in all_fields():
        value = getattr(getattr(config, info.group), info.name)
        if info.kind not in (int, float) or info.many or value is None:
            continue
        if not math.isfinite(value):
            yield f"{info.flag} is {value}; give a finite number"
        elif info.name in POSITIVE and value <= 0:
            yield f"{info.flag} is {value}; it must be greater than 0"
        elif info.name in NOT_NEGATIVE and value < 0:
            yield f"{info.flag} is {value}; it must not be negative"
        elif info.name in SHARES and not SHARES[info.name][0] <= value < SHARES[info.name][1]:
            low, high = SHARES[info.name]
            yield f"{info.flag} is {value}; it must lie in [{low}, {high})"


def one_length(config: RunConfig, world_size: int) -> Iterator[str]:
    """Exactly one option sets the length of the training."""
    given = [name for name in LENGTH_GROUP if getattr(config.training, name) is not None]
    flags = [flag_of(name) for name in LENGTH_GROUP]
    if len(given) > 1:
        shown = ", ".join(f"{flag_of(name)} {getattr(config.training, name)}" for name in given)
        yield f"{shown} are given together; keep one of them"
    elif not given:
        yield f"the length of the training is missing; give one of {', '.join(flags)}"


def one_warmup(config: RunConfig, world_size: int) -> Iterator[str]:
    """The warm-up is a share or a number of iterations."""
    fraction, iters = config.optimizer.lr_warmup_fraction, config.optimizer.lr_warmup_iters
    if fraction is not None and iters is not None:
        yield f"--lr-warmup-fraction {fraction} and --lr-warmup-iters {iters} are given together; keep one of them"
    total = config.training.train_iters
    if iters is not None and total is not None and iters > total:
        yield f"--lr-warmup-iters {iters} is more than --train-iters {total}; the peak would never be reached"


def one_kind_of_micro_batch(config: RunConfig, world_size: int) -> Iterator[str]:
    """A micro-batch is filled by number of pairs or by tokens."""
    size, tokens = config.training.micro_batch_size, config.training.micro_batch_tokens
    if size is not None and tokens is not None:
        yield f"--micro-batch-size {size} and --micro-batch-tokens {tokens} are given together; keep one of them"


def learning_rates_ordered(config: RunConfig, world_size: int) -> Iterator[str]:
    """The learning rate decays downwards."""
    if config.optimizer.min_lr > config.optimizer.lr:
        yield f"--min-lr {config.optimizer.min_lr} is larger than --lr {config.optimizer.lr}; it is where the decay ends"


def model_given(config: RunConfig, world_size: int) -> Iterator[str]:
    """The model comes from somewhere, and so does the record of its origin when a run is resumed."""
    if config.model.pretrained_checkpoint is None:
        yield "no model is given; name a native checkpoint (of checkpoint_conversion/hf_to_mcore.py) with --pretrained-checkpoint"


def data_path_well_formed(config: RunConfig, world_size: int) -> Iterator[str]:
    """--data-path is a list of prefixes, or of weights and prefixes in turn."""
    words = config.data.data_path
    if not words:
        yield "no data is given; name a dataset prefix with --data-path (tools/preprocess_preference_data.py makes one)"
        return
    weights = [parse_number(word) for word in words]
    if all(weight is None for weight in weights):
        return
    if len(words) % 2 or any((weight is None) != bool(place % 2) for place, weight in enumerate(weights)):
        yield f"--data-path {' '.join(words)}: give prefixes only, or a weight before each prefix"
    elif any(weight is not None and not 0 < weight < math.inf for weight in weights):
        yield f"--data-path {' '.join(words)}: each weight must be greater than 0"


def split_well_formed(config: RunConfig, world_size: int) -> Iterator[str]:
    """--split is two shares; a validation needs a share."""
    shares = [parse_number(part) for part in config.data.split.split(",")]
    if len(shares) != 2 or any(share is None or not 0 <= share < math.inf for share in shares) or not shares[0]:
        yield f"--split {config.data.split}: give the train and validation shares as two numbers, e.g. 99,1; the first above 0"
    elif config.training.eval_interval is not None and not shares[1]:
        yield f"--eval-interval {config.training.eval_interval} needs a validation split; --split {config.data.split} keeps none"


def processes_fit(config: RunConfig, world_size: int) -> Iterator[str]:
    """The processes divide into replicas, and the global batch into their micro-batches."""
    parallel, packed = config.parallel, config.training.micro_batch_tokens is not None
    size = config.training.micro_batch_size or 1
    axes = (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.context_parallel_size)
    if min(*axes, size) < 1:
        return  # told by `numbers_in_range`
    if world_problems(parallel, world_size):
        return  # told by `check_layout`, which knows the model and so the nearest layouts that work
    replicas, batch = data_parallel_size(parallel, world_size), config.training.global_batch_size
    if batch % (size * replicas):
        divisor = (
            f"the data-parallel size = {replicas}" if packed else f"--micro-batch-size x data-parallel size = {size} x {replicas}"
        )
        yield (
            f"--global-batch-size {batch} is not a multiple of {divisor};"
            f" the next that is: {math.ceil(batch / (size * replicas)) * size * replicas}"
        )
    elif parallel.num_layers_per_virtual_pipeline_stage is not None:
        stages, rounds = parallel.pipeline_model_parallel_size, batch // (size * replicas)
        if rounds % stages:
            following = math.ceil(rounds / stages) * stages * size * replicas
            yield (
                f"the interleaved pipeline of --pipeline-model-parallel-size {stages} needs a multiple of {stages} micro-batches,"
                f" and --global-batch-size {batch} makes {'up to ' if packed else ''}{rounds}; the next that works: {following}"
            )


def parallel_options_meaningful(config: RunConfig, world_size: int) -> Iterator[str]:
    """Options of one parallel axis need that axis."""
    parallel = config.parallel
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield "--sequence-parallel needs --tensor-model-parallel-size above 1: it shards inside a tensor-parallel group"
    if parallel.num_layers_per_virtual_pipeline_stage is not None and parallel.pipeline_model_parallel_size == 1:
        yield "--num-layers-per-virtual-pipeline-stage needs --pipeline-model-parallel-size above 1"
    sizes, cp = parallel.hierarchical_context_parallel_sizes, parallel.context_parallel_size
    if parallel.cp_comm_type not in ("auto", "all_gather") and cp == 1:  # a dumped configuration has all_gather there
        yield f"--cp-comm-type {parallel.cp_comm_type} needs --context-parallel-size above 1"
    if sizes and parallel.cp_comm_type != "a2a+p2p":
        yield "--hierarchical-context-parallel-sizes needs --cp-comm-type a2a+p2p"
    elif sizes and (len(sizes) != 2 or min(sizes) < 1 or sizes[0] * sizes[1] != cp):
        yield (
            f"--hierarchical-context-parallel-sizes {' '.join(map(str, sizes))}: give two sizes, of the groups that trade heads"
            f" and of the rings, whose product is --context-parallel-size {cp}"
        )
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        yield "--overlap-param-gather needs --use-distributed-optimizer: without it there is nothing to gather"
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        yield "--overlap-param-gather needs --overlap-grad-reduce (Megatron-Core schedules them together)"


def attention_supported(config: RunConfig, world_size: int) -> Iterator[str]:
    """Transformer Engine's attention knows no shared prefix, and shards sequences in a layout of its own."""
    if config.training.attention_backend != "te":
        return
    if config.data.prefix_sharing:
        yield "--attention-backend te needs --no-prefix-sharing: its masks know no shared prefix; flash does"
    if config.parallel.context_parallel_size > 1:
        yield "--attention-backend te works with --context-parallel-size 1 only; flash works with any"
    if not config.training.recompute_attention:
        yield "--attention-backend te keeps no output of its own for --no-recompute-attention; flash does"


def optimizer_supported(config: RunConfig, world_size: int) -> Iterator[str]:
    """Megatron-Core's distributed optimizer shards Adam-like states only."""
    if config.parallel.use_distributed_optimizer and config.optimizer.optimizer == "sgd":
        yield (
            "--use-distributed-optimizer cannot shard --optimizer sgd: Megatron-Core takes Adam-like ones;"
            " choose adam or rmsprop, or drop --use-distributed-optimizer"
        )


def offload_supported(config: RunConfig, world_size: int) -> Iterator[str]:
    """Megatron-Core moves Adam's sharded states, and activations of layers that are neither recomputed nor in a pipeline."""
    optimizer, training = config.optimizer, config.training
    if optimizer.optimizer_cpu_offload and not config.parallel.use_distributed_optimizer:
        yield "--optimizer-cpu-offload needs --use-distributed-optimizer: otherwise the main weights stay on the GPU"
    if optimizer.optimizer_offload_fraction > 1:
        yield f"--optimizer-offload-fraction is {optimizer.optimizer_offload_fraction}; it is a share, at most 1"
    if training.cpu_offloading_num_layers and training.recompute_granularity is not None:
        yield "--cpu-offloading-num-layers and --recompute-granularity exclude each other; keep one of them"
    if training.cpu_offloading_num_layers and config.parallel.pipeline_model_parallel_size > 1:
        yield "--cpu-offloading-num-layers does not work with --pipeline-model-parallel-size above 1"


def something_is_learnt(config: RunConfig, world_size: int) -> Iterator[str]:
    """Some term of the objective has a weight."""
    if config.objective.nll_weight == 0 and config.objective.preference_weight == 0:
        yield "--nll-weight and --preference-weight are both 0: there is nothing to learn"


def whole_distributions_are_computed(config: RunConfig, world_size: int) -> Iterator[str]:
    """A cache holds two numbers a turn."""
    traits = traits_of(config.objective)
    if traits is not None and traits.distribution and config.reference.reference != "live":
        yield (
            f"--loss-type {config.objective.loss_type} needs --reference live: it compares whole distributions over the "
            f"vocabulary, which --reference {config.reference.reference} does not hold"
        )


def adapters_have_a_base(config: RunConfig, world_size: int) -> Iterator[str]:
    """Checkpoints of a run with adapters hold no other weights, so the others must lie elsewhere."""
    if config.lora.lora_rank is not None and config.model.random_init:
        yield "--lora-rank cannot train beside --random-init: the frozen weights would be stored nowhere"


def checkpoints_have_a_place(config: RunConfig, world_size: int) -> Iterator[str]:
    """Checkpoint intervals need a directory."""
    for name in ("save_interval", "keep_checkpoints"):
        if getattr(config.checkpoint, name) is not None and config.checkpoint.save is None:
            yield f"{flag_of(name)} {getattr(config.checkpoint, name)} needs --save DIRECTORY"


RULES: tuple[Rule, ...] = (
    numbers_in_range,
    model_given,
    data_path_well_formed,
    split_well_formed,
    one_length,
    one_warmup,
    one_kind_of_micro_batch,
    learning_rates_ordered,
    processes_fit,
    parallel_options_meaningful,
    attention_supported,
    optimizer_supported,
    offload_supported,
    something_is_learnt,
    whole_distributions_are_computed,
    adapters_have_a_base,
    checkpoints_have_a_place,
)

SHARES: dict[str, tuple[float, float]] = {
    "label_smoothing": (0, 0.5),
    "lr_warmup_fraction": (0, 1),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "rmsprop_alpha": (0, 1),
}
"""Settings that lie in [low, high)."""
NOT_NEGATIVE = frozenset(
    ("preference_weight", "nll_weight", "lr", "min_lr", "lr_warmup_iters", "weight_decay", "sgd_momentum", "clip_grad", "seed")
) | {"cpu_offloading_num_layers", "simpo_gamma", "solo_alpha"}
"""Settings that may be 0."""
POSITIVE = frozenset(info.name for info in all_fields() if info.kind in (int, float)) - NOT_NEGATIVE - SHARES.keys()
"""Sizes, intervals, counts, rates and bases: all numbers that are not listed above."""


def find_ineffective_flags(config: RunConfig, *, given: Collection[str]) -> list[str]:
    """Return one line for each flag of ``given`` that changes nothing in this configuration."""
    return [f"{flag_of(name)} has no effect: {reason}" for name, reason in _ineffective(config) if name in given]


def _ineffective(config: RunConfig) -> Iterator[tuple[str, str]]:
    optimizer = config.optimizer.optimizer
    for info in all_fields():
        owner = info.name.split("_")[0]
        if info.group == "optimizer" and owner in ("adam", "rmsprop", "sgd") and owner != optimizer:
            yield info.name, f"--optimizer is {optimizer}"
    yield from _ineffective_in_the_objective(config)
    if config.optimizer.lr_decay_style == "constant":
        yield "min_lr", "--lr-decay-style is constant"
    if config.training.recompute_granularity != "full":
        yield "recompute_num_layers", "it needs --recompute-granularity full"
        yield "recompute_method", "it needs --recompute-granularity full"
        yield "recompute_attention", "it needs --recompute-granularity full"
    if not config.optimizer.optimizer_cpu_offload:
        yield "optimizer_offload_fraction", "it needs --optimizer-cpu-offload"
    if config.training.eval_interval is None:
        yield "eval_iters", "no --eval-interval is given"
    if not config.evaluation.eval_tasks:
        for info in all_fields():
            if info.group == "evaluation":
                yield info.name, "no --eval-tasks are given"
    if config.training.num_epochs is None:
        yield "drop_last", "it concerns the end of --num-epochs"
    if config.lora.lora_rank is None:
        for name in ("lora_alpha", "lora_target_modules"):
            yield name, "no --lora-rank is given"
    if config.logging.wandb_project is None:
        yield "wandb_name", "no --wandb-project is given"


def _ineffective_in_the_objective(config: RunConfig) -> Iterator[tuple[str, str]]:
    objective = config.objective
    traits = traits_of(objective)
    if traits is None:
        for name in ("loss_type", "beta", "turn_aggregation", *sorted(OWN_SETTINGS)):
            yield name, "--preference-weight is 0"
        return
    for name in sorted(OWN_SETTINGS - traits.settings):
        yield name, f"--loss-type is {objective.loss_type}"
    if not traits.uses_reference:
        for info in all_fields():
            if info.group == "reference":
                yield info.name, f"--loss-type {objective.loss_type} needs no reference"
    elif traits.short:
        yield "reference_context", f"--loss-type {objective.loss_type} needs the reference in both contexts"
    elif traits.distribution:
        yield "reference_context", f"--loss-type {objective.loss_type} reads the short context"


def parse_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        return float(text)
    except ValueError:
        return None
