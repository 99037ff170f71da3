"""Bytes of one rank at the worst moment of a step, by cause.

What stands through the step (weights, gradients, optimizer, a live reference) plus what layers keep for the backward plus what
the moment itself needs. Three moments can be the worst: the head, the backward of the first layers to go (attention or
feed-forward, after the layer was recomputed where it is), and the embedding's gradient. docs/memory.md gives the formulas in
words and compares them with measurements.
"""

from __future__ import annotations

import dataclasses
import math

from megatron_longpo.config.loss_types import reference_contexts, traits_of
from megatron_longpo.config.schema import RunConfig, TrainingConfig
from megatron_longpo.estimation.layer import LayerBytes, layer_bytes
from megatron_longpo.estimation.shape import PairShape
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.lora_targets import adapted_parts, hugging_face_names, linear_sizes
from megatron_longpo.utils.logits import rows_at_once

FP32 = 4
INDEX_MAPS = 6
"""int64 numbers that a micro-batch holds for each row: tokens, labels, positions and three maps of where a row counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """A layout in numbers.

    Attributes:
        tp: tensor-parallel size.
        sp: number of ranks that norms and residuals are divided by: ``tp`` with sequence parallelism, otherwise 1.
        pp: pipeline-parallel size.
        cp: context-parallel size.
        dp: data-parallel size.
        chunks: model chunks of a stage.
    """

    tp: int
    sp: int
    pp: int
    cp: int
    dp: int
    chunks: int

    @classmethod
    def of(cls, config: RunConfig, architecture: ModelArchitecture, num_devices: int) -> Ranks:
        """Read a run's layout."""
        parallel = config.parallel
        tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        cp, virtual = parallel.context_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
        return cls(
            tp=tp,
            sp=tp if parallel.sequence_parallel else 1,
            pp=pp,
            cp=cp,
            dp=num_devices // (tp * pp * cp),
            chunks=architecture.num_layers // (pp * virtual) if virtual else 1,
        )

    @property
    def multiple(self) -> int:
        """The packed length is padded to a multiple of it."""
        per_rank = 2 * self.sp if self.cp > 1 else self.sp
        return self.cp * per_rank if self.cp > 1 else per_rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of the fullest rank, by cause; the peak is their sum.

    Attributes:
        weights: parameters in the compute dtype.
        gradients: Megatron-Core's fp32 gradient buffer.
        optimizer: fp32 main weights (bf16 runs) and moments.
        reference: weights of a live reference.
        activations: what layers, hand-overs and micro-batches in flight keep for the backward.
        recomputed: activations of the unit that is computed again at the worst moment.
        attention: gathered keys and values, and the fp32 accumulators of their gradients, at the worst moment.
        head: gradients that the head computed ahead, and its chunk of logits.
        workspace: gradients in flight and temporaries of the worst moment, and index maps.
        host: optimizer state that is kept in the host's memory, not part of the peak.
        stage: pipeline stage of the fullest rank.
        moment: which moment is the worst.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    recomputed: int
    attention: int
    head: int
    workspace: int
    host: int
    stage: int
    moment: str

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, cause) for cause in CAUSES)


CAUSES = ("weights", "gradients", "optimizer", "reference", "activations", "recomputed", "attention", "head", "workspace")


def estimate_memory(
    architecture: ModelArchitecture, config: RunConfig, shape: PairShape, num_devices: int, *, fused: bool
) -> MemoryEstimate:
    """Estimate the fullest rank of a run in the steady state (after its first update).

    Args:
        architecture: the model.
        config: layout, precision, recomputation, optimizer, reference, micro-batches.
        shape: the longest pair; ``prefix_sharing`` of the shape counts, not of the configuration.
        num_devices: number of processes.
        fused: weight gradients are added to the buffer inside the matrix multiplication (Apex's extension on a GPU).
    """
    ranks = Ranks.of(config, architecture, num_devices)
    stages = [_stage(architecture, config, shape, ranks, stage, fused=fused) for stage in range(ranks.pp)]
    return max(stages, key=lambda estimate: estimate.peak)


def stage_parameters(architecture: ModelArchitecture, ranks: Ranks, stage: int) -> int:
    """Parameters of one rank of a pipeline stage."""
    hidden, width = architecture.hidden_size, architecture.kv_channels
    heads, groups = architecture.num_attention_heads, architecture.num_query_groups
    shards = hidden * width * (2 * heads + 2 * groups) + 3 * hidden * architecture.ffn_hidden_size
    shards += width * (heads + 2 * groups) if architecture.add_qkv_bias else 0
    whole = 2 * hidden + (2 * width if architecture.qk_layernorm else 0)
    total = architecture.num_layers // ranks.pp * (shards // ranks.tp + whole)
    words = math.ceil(architecture.vocab_size / ranks.tp) * hidden
    first, last = stage == 0, stage == ranks.pp - 1
    tables = first + last if not (architecture.tie_word_embeddings and first and last) else 1
    return total + tables * words + (hidden if last else 0)


def adapter_parameters(architecture: ModelArchitecture, config: RunConfig, ranks: Ranks) -> int:
    """Parameters of a rank's adapters; of each pair of matrices the one on the divided side is divided."""
    sizes, total = linear_sizes(architecture), 0
    for linear, part in adapted_parts(hugging_face_names(config.lora.lora_target_modules)):
        outside, inside = sizes[part]
        total += outside // ranks.tp + inside if linear.column_parallel else outside + inside // ranks.tp
    return (config.lora.lora_rank or 0) * total * (architecture.num_layers // ranks.pp)


def micro_pairs(config: RunConfig) -> int:
    """Pairs of a micro-batch."""
    return config.training.micro_batch_size or 1


def micro_batches(config: RunConfig, ranks: Ranks) -> int:
    """Micro-batches of an iteration on each data-parallel rank."""
    return max(1, config.training.global_batch_size // (micro_pairs(config) * ranks.dp))


def chunks_in_flight(ranks: Ranks, stage: int, count: int) -> int:
    """Model chunks whose activations a stage holds at once under Megatron-Core's 1F1B schedules."""
    if ranks.chunks == 1:
        return min(ranks.pp - stage, count)
    warm_up = 2 * (ranks.pp - stage - 1) + (ranks.chunks - 1) * ranks.pp
    return min(warm_up + 1, count * ranks.chunks)


def _standing(architecture: ModelArchitecture, config: RunConfig, ranks: Ranks, stage: int) -> dict[str, int]:
    """Weights, gradients, optimizer and reference."""
    base, adapters = stage_parameters(architecture, ranks, stage), adapter_parameters(architecture, config, ranks)
    trained = base if config.lora.lora_rank is None else adapters
    element = 2 if config.training.bf16 else FP32
    sharded = ranks.dp * ranks.cp if config.parallel.use_distributed_optimizer else 1
    moments = 2 if config.optimizer.optimizer != "sgd" else int(config.optimizer.sgd_momentum > 0)
    states = FP32 * (moments + config.training.bf16) * trained // sharded
    away = int(states * config.optimizer.optimizer_offload_fraction) if config.optimizer.optimizer_cpu_offload else 0
    live = config.reference.reference == "live" and bool(reference_contexts(config.objective, config.reference))
    # adapters that are switched off are the reference
    second = live and (config.lora.lora_rank is None or config.reference.reference_checkpoint is not None)
    return {
        "weights": element * (base + adapters),
        "gradients": FP32 * trained,
        "optimizer": states - away,
        "host": away,
        "reference": element * base if second else 0,
    }


def _kept(layer: LayerBytes, training: TrainingConfig, layers: int) -> tuple[int, int]:
    """What ``layers`` layers keep, and what of it is computed again for the backward that comes first, the last layers'."""
    if training.recompute_granularity == "selective":
        return layers * (layer.saved - layer.mlp), layer.mlp
    if training.recompute_granularity != "full":
        return layers * layer.saved, 0
    unit, output = min(training.recompute_num_layers, layers), 0 if training.recompute_attention else layer.output
    if training.recompute_method == "uniform":
        return math.ceil(layers / unit) * layer.entry + layers * output, unit * (layer.saved - output)
    kept = unit * (layer.entry + output) + (layers - unit) * layer.saved
    return kept, layer.saved - output if unit == layers else 0


def _head(architecture: ModelArchitecture, config: RunConfig, ranks: Ranks, rows: int, answers: int) -> int:
    """Gradients that the head's forward leaves for its backward, and the chunk of logits that makes them.

    A chunk of rows whose weight is known is turned into its gradient in place; one of answers has a temporary beside it.
    """
    element = 2 if config.training.bf16 else FP32
    words = math.ceil(architecture.vocab_size / ranks.tp)
    chunk = rows_at_once(config.training.logit_chunk_size, words)
    narrow = element if element != FP32 else 0  # the same chunk in the compute dtype
    logits = max(min(chunk, rows) * (FP32 + narrow), min(chunk, answers) * 2 * FP32) * words
    traits = traits_of(config.objective)
    if traits is not None and traits.distribution:  # the policy's logits, the teacher's, and what is made of them
        logits = max(logits, min(rows_at_once(config.training.logit_chunk_size, 3 * words), answers) * 3 * FP32 * words)
    # a chunk's part of the weight's gradient, before it is added, and the gradient; none where the head is frozen
    weight = words * architecture.hidden_size * (narrow + FP32) if config.lora.lora_rank is None else 0
    return rows * architecture.hidden_size * element + logits + weight


def _stage(
    architecture: ModelArchitecture, config: RunConfig, shape: PairShape, ranks: Ranks, stage: int, *, fused: bool
) -> MemoryEstimate:
    element = 2 if config.training.bf16 else FP32
    packed = max(shape.rows * micro_pairs(config), config.training.micro_batch_tokens or 0)
    packed += -packed % ranks.multiple
    rows = packed // ranks.cp
    count = micro_batches(config, ranks)
    layer = layer_bytes(architecture, ranks, rows, element, fused=fused, exchange=config.parallel)
    standing = _standing(architecture, config, ranks, stage)
    last = stage == ranks.pp - 1

    layers = architecture.num_layers // (ranks.pp * ranks.chunks)
    kept, again = _kept(layer, config.training, layers)
    states = rows * architecture.hidden_size * element
    final = states // ranks.sp  # what the last norm reads, or what is handed over
    tables = 2 * rows * architecture.kv_channels * FP32
    activations = chunks_in_flight(ranks, stage, count) * (kept + (final if ranks.pp > 1 or last else 0) + tables)
    maps = count * 8 * INDEX_MAPS * (packed + (rows if ranks.cp > 1 else 0))

    moments = {
        "feed-forward": {"recomputed": again, "attention": 0, "head": 0, "workspace": layer.mlp_backward},
        "attention": {
            "recomputed": again,
            "attention": layer.exchanged,
            "head": 0,
            "workspace": layer.attention_backward,
        },
    }
    if last:
        answers = 2 * shape.tail * micro_pairs(config) // ranks.cp
        head = _head(architecture, config, ranks, rows, answers)
        moments["head"] = {"recomputed": 0, "attention": 0, "head": head, "workspace": states}  # states: what the head reads
    worst = max(moments, key=lambda name: sum(moments[name].values()))
    moment = moments[worst] | {"workspace": moments[worst]["workspace"] + maps}
    if moment["workspace"] < 0:  # what the layer has let go of by then is more than it needs
        activations, moment["workspace"] = activations + moment["workspace"], 0
    return MemoryEstimate(**standing, activations=activations, **moment, stage=stage, moment=worst)
