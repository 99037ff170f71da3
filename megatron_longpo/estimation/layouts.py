"""Which layouts of a run fit its devices, and in what order to try them.

The order is by an estimated time of an iteration: operations at a rate that devices reach, the pipeline's bubble, and bytes
that go over links, nothing of it overlapped. It ranks layouts; it does not predict speeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from megatron_longpo.config.context_layout import choose_exchange
from megatron_longpo.config.fields import group_fields
from megatron_longpo.config.layout import nearest_layouts
from megatron_longpo.config.schema import ParallelConfig, RunConfig
from megatron_longpo.estimation.flops import pair_flops, recompute_flops
from megatron_longpo.estimation.memory import (
    FP32,
    MemoryEstimate,
    Ranks,
    estimate_memory,
    micro_batches,
    micro_pairs,
    stage_parameters,
)
from megatron_longpo.estimation.shape import PairShape
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.flops import head_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What the run gets.

    Attributes:
        num_devices: number of processes, one a device.
        device_bytes: memory of a device.
        reserve_bytes: part of it that is not the run's: the CUDA context, NCCL's buffers, fragmentation.
        node_size: devices of one node; tensor-parallel groups stay inside.
        flops_per_second: what a device reaches in matrix multiplications.
        link_bytes_per_second: what a device sends to another one.
        host_bytes_per_second: what a device moves to or from the host.
    """

    num_devices: int
    device_bytes: int
    reserve_bytes: int = 8 << 30
    node_size: int = 8
    flops_per_second: float = 4e14
    link_bytes_per_second: float = 2e11
    host_bytes_per_second: float = 2e10

    @property
    def usable_bytes(self) -> int:
        """What a run may fill."""
        return self.device_bytes - self.reserve_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A layout with what it needs.

    Attributes:
        config: the run with this layout.
        ranks: the same in numbers.
        memory: of the fullest rank.
        device_flops: operations of the busiest device in an iteration, recomputation included.
        recomputed_share: share of these that is done a second time.
        bubble: time that a stage waits over the time that it works.
        link_bytes: bytes that a rank receives in an iteration.
        seconds: estimated time of an iteration.
    """

    config: RunConfig
    ranks: Ranks
    memory: MemoryEstimate
    device_flops: float
    recomputed_share: float
    bubble: float
    link_bytes: float
    seconds: float


def plan_layouts(architecture: ModelArchitecture, base: RunConfig, shape: PairShape, machine: Machine) -> list[Plan]:
    """The layouts that fit, the fastest first; of each, the cheapest recomputation that fits.

    Args:
        architecture: the model.
        base: precision, optimizer, batch and reference; its layout and recomputation are not read.
        shape: the longest pair.
        machine: the devices.
    """
    plans = []
    for config in _layouts(architecture, base, shape, machine):
        fitting: list[Plan] = []
        for options in (_recomputations(config, architecture), _offloads(config, architecture)):
            if not fitting:
                candidates = (evaluate(architecture, option, shape, machine) for option in options)
                fitting = [plan for plan in candidates if plan.memory.peak <= machine.usable_bytes]
        plans += sorted(fitting, key=lambda plan: plan.seconds)[:1]
    return sorted(plans, key=lambda plan: plan.seconds)


def evaluate(architecture: ModelArchitecture, config: RunConfig, shape: PairShape, machine: Machine) -> Plan:
    """Memory, operations and estimated time of one configuration."""
    ranks = Ranks.of(config, architecture, machine.num_devices)
    count, pairs = micro_batches(config, ranks), micro_pairs(config)
    head = 6 * head_parameters(architecture) * shape.rows
    once = pair_flops(architecture, shape) - head
    again = recompute_flops(architecture, shape, config.training, ranks.pp)
    busiest = count * pairs * ((once + again) / ranks.pp + head) / (ranks.tp * ranks.cp)
    bubble = (ranks.pp - 1) / (count * ranks.chunks)
    links = _link_bytes(architecture, config, shape, ranks)
    memory = estimate_memory(architecture, config, shape, machine.num_devices, fused=config.training.bf16)
    seconds = busiest / machine.flops_per_second * (1 + bubble) + links / machine.link_bytes_per_second
    seconds += 4 * memory.host / machine.host_bytes_per_second  # gradients there, weights back, and an update at memory's speed
    return Plan(
        config=config,
        ranks=ranks,
        memory=memory,
        device_flops=busiest,
        recomputed_share=count * pairs * again / ranks.pp / (ranks.tp * ranks.cp) / busiest,
        bubble=bubble,
        link_bytes=links,
        seconds=seconds,
    )


def paste_flags(config: RunConfig) -> str:
    """The flags of a layout, as the training command takes them: what differs from the defaults."""
    words = []
    for group in ("parallel", "data", "reference", "optimizer", "training"):
        for info in group_fields(group):
            value = getattr(getattr(config, group), info.name)
            if value in (info.default, None):
                continue
            if info.kind is bool:
                words.append(info.flag if value else info.flag.replace("--", "--no-", 1))
            else:
                words += [info.flag, *map(str, value if info.many else [value])]
    return " ".join(words)


def _layouts(architecture: ModelArchitecture, base: RunConfig, shape: PairShape, machine: Machine) -> Iterator[RunConfig]:
    element = 2 if base.training.bf16 else FP32
    sizes = dataclasses.replace(base.parallel, num_layers_per_virtual_pipeline_stage=None, sequence_parallel=True)
    for layout in nearest_layouts(sizes, architecture, machine.num_devices, count=machine.num_devices**3):
        tp, replicas = layout.tensor_model_parallel_size, machine.num_devices
        replicas //= tp * layout.pipeline_model_parallel_size * layout.context_parallel_size
        if tp > machine.node_size or base.training.global_batch_size % (replicas * micro_pairs(base)):
            continue
        node = min(machine.node_size, machine.num_devices)
        settled = layout
        if layout.context_parallel_size > 1:
            settled, _ = choose_exchange(layout, architecture, shape.rows, bytes_per_element=element, ranks_per_node=node)
        shards = replicas * layout.context_parallel_size > 1 and base.optimizer.optimizer != "sgd"
        yield dataclasses.replace(base, parallel=dataclasses.replace(settled, use_distributed_optimizer=shards))


def _recomputations(config: RunConfig, architecture: ModelArchitecture) -> Iterator[RunConfig]:
    def with_training(**changes: object) -> RunConfig:
        return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))  # type: ignore[arg-type]

    yield with_training(recompute_granularity=None)
    yield with_training(recompute_granularity="selective")
    layers = architecture.num_layers // config.parallel.pipeline_model_parallel_size
    for attention in (False, True):
        for count in range(1, layers):
            yield with_training(
                recompute_granularity="full",
                recompute_method="block",
                recompute_num_layers=count,
                recompute_attention=attention,
            )
        yield with_training(
            recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1, recompute_attention=attention
        )


def _offloads(config: RunConfig, architecture: ModelArchitecture) -> Iterator[RunConfig]:
    """The same with the optimizer's state on the host, where Megatron-Core can move it."""
    if config.parallel.use_distributed_optimizer:
        moved = dataclasses.replace(config.optimizer, optimizer_cpu_offload=True)
        for option in _recomputations(config, architecture):
            yield dataclasses.replace(option, optimizer=moved)


def _link_bytes(architecture: ModelArchitecture, config: RunConfig, shape: PairShape, ranks: Ranks) -> float:
    """Bytes that a rank receives in an iteration."""
    element = 2 if config.training.bf16 else FP32
    count, layers = micro_batches(config, ranks), architecture.num_layers / ranks.pp
    rows = shape.rows * micro_pairs(config) / ranks.cp
    states = rows * architecture.hidden_size * element
    full = config.training.recompute_granularity == "full"
    again, attends = int(full), int(full and config.training.recompute_attention)
    # a gather or a scatter of all rows before and after each half of a layer; and inputs once more for weight gradients
    tensor = layers * (4 + 4 + 2 + 4 * again) * states * (ranks.tp - 1) / ranks.tp
    stages = 2 * states / ranks.sp if ranks.pp > 1 else 0.0
    passed = layers * (2 + attends) * _exchange_bytes(architecture, config.parallel, rows, element, ranks)
    replicas = ranks.dp * ranks.cp
    parameters = stage_parameters(architecture, ranks, 0)
    update = parameters * (FP32 + (element if config.parallel.use_distributed_optimizer else FP32)) * (replicas - 1) / replicas
    return count * (tensor + stages + passed) + update


def _exchange_bytes(architecture: ModelArchitecture, parallel: ParallelConfig, rows: float, element: int, ranks: Ranks) -> float:
    """Bytes of keys, values and heads that a layer's attention receives in one direction, gradients' fp32 apart."""
    if ranks.cp == 1:
        return 0.0
    width = rows * architecture.kv_channels * element / ranks.tp
    keys, heads = 2 * architecture.num_query_groups, 2 * architecture.num_attention_heads
    if parallel.cp_comm_type in ("all_gather", "p2p"):
        return width * keys * (ranks.cp - 1)
    trade, ring = parallel.hierarchical_context_parallel_sizes or (ranks.cp, 1)
    return width * (keys + heads) * (trade - 1) / trade + width * keys * (ring - 1)
