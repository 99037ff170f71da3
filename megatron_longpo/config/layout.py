"""Whether a parallel layout fits an architecture and a number of processes, and which layouts near it do."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

from megatron_longpo.config.context_layout import exchange_problems
from megatron_longpo.config.schema import ParallelConfig
from megatron_longpo.utils.errors import UserError


class LayoutArchitecture(Protocol):
    """What a layout must divide; `models.architecture.ModelArchitecture` has it."""

    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def num_query_groups(self) -> int: ...  # noqa: D102
    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def ffn_hidden_size(self) -> int: ...  # noqa: D102
    @property
    def kv_channels(self) -> int: ...  # noqa: D102


def check_layout(parallel: ParallelConfig, architecture: LayoutArchitecture, world_size: int) -> None:
    """Refuse a layout that cannot work, before anything is built.

    Args:
        parallel: the layout asked for.
        architecture: the model, with all overrides applied.
        world_size: number of processes of the run.

    Raises:
        UserError: one line with every reason and the nearest layouts that do work.
    """
    reasons = world_problems(parallel, world_size) + _architecture_problems(parallel, architecture)
    if not reasons:
        return
    near = nearest_layouts(parallel, architecture, world_size)
    cure = "nearest layouts that work: " + "; ".join(describe_layout(layout) for layout in near)
    raise UserError(f"{describe_layout(parallel)} on {world_size} processes cannot work: {'; '.join(reasons)}. {cure}")


def world_problems(parallel: ParallelConfig, world_size: int) -> list[str]:
    """List what is wrong between a layout and the number of processes."""
    tp, pp, cp = _sizes(parallel)
    if min(tp, pp, cp) < 1:
        return ["tensor-, pipeline- and context-parallel sizes must be at least 1"]
    if world_size % (tp * pp * cp):
        return [f"{world_size} processes are not a multiple of tensor x pipeline x context = {tp} x {pp} x {cp} = {tp * pp * cp}"]
    return []


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """Return the number of model replicas: the processes that tensor, pipeline and context parallelism leave."""
    return world_size // math.prod(_sizes(parallel))


def nearest_layouts(
    parallel: ParallelConfig, architecture: LayoutArchitecture, world_size: int, count: int = 3
) -> list[ParallelConfig]:
    """Return up to ``count`` layouts that work, those first whose sizes differ by the smallest factors.

    A layout of one process a replica always works, so the list is never empty.
    """
    wanted = _sizes(parallel)
    divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
    candidates = []
    for tp in divisors:
        for pp in divisors:
            for cp in divisors:
                layout = _resized(parallel, architecture, tp, pp, cp)
                if not world_problems(layout, world_size) and not _architecture_problems(layout, architecture):
                    candidates.append((_distance((tp, pp, cp), wanted), tp * pp * cp, layout))
    candidates.sort(key=lambda entry: (entry[0], -entry[1]))
    return [layout for _, _, layout in candidates[:count]]


def describe_layout(parallel: ParallelConfig) -> str:
    """Spell a layout in short: ``TP 2, PP 2 (1 layers a virtual stage), CP 1``."""
    tp, pp, cp = _sizes(parallel)
    chunk = parallel.num_layers_per_virtual_pipeline_stage
    virtual = f" ({chunk} layers a virtual stage)" if chunk is not None else ""
    return f"TP {tp}, PP {pp}{virtual}, CP {cp}"


def _sizes(parallel: ParallelConfig) -> tuple[int, int, int]:
    return parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.context_parallel_size


def _architecture_problems(parallel: ParallelConfig, architecture: LayoutArchitecture) -> list[str]:
    tp, pp, _ = _sizes(parallel)
    if tp < 1 or pp < 1:
        return []  # told by `world_problems`
    divided = (
        ("attention heads", architecture.num_attention_heads, "tensor-parallel size", tp),
        ("key/value heads", architecture.num_query_groups, "tensor-parallel size", tp),
        ("feed-forward width", architecture.ffn_hidden_size, "tensor-parallel size", tp),
        ("layers", architecture.num_layers, "pipeline-parallel size", pp),
    )
    problems = [f"{what} {size} is not a multiple of {axis} {by}" for what, size, axis, by in divided if size % by]
    chunk = parallel.num_layers_per_virtual_pipeline_stage
    if chunk is not None and architecture.num_layers % pp == 0:
        stage = architecture.num_layers // pp
        if chunk < 1 or stage % chunk:
            problems.append(f"{stage} layers of a pipeline stage are not a multiple of {chunk} layers a virtual stage")
        elif stage == chunk:
            problems.append(f"{chunk} layers a virtual stage make one model chunk a stage: nothing is interleaved")
    return problems or exchange_problems(parallel, architecture)


def _resized(parallel: ParallelConfig, architecture: LayoutArchitecture, tp: int, pp: int, cp: int) -> ParallelConfig:
    """Give a layout other sizes; flags that the new sizes make meaningless are dropped."""
    chunk = parallel.num_layers_per_virtual_pipeline_stage
    stage = architecture.num_layers // pp
    if chunk is not None:
        fitting = [size for size in range(1, stage) if stage % size == 0] if pp > 1 else []
        wanted = chunk
        chunk = min(fitting, key=lambda size: abs(size - wanted), default=None)
    return dataclasses.replace(
        parallel,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        num_layers_per_virtual_pipeline_stage=chunk,
        sequence_parallel=parallel.sequence_parallel and tp > 1,
        hierarchical_context_parallel_sizes=(
            parallel.hierarchical_context_parallel_sizes if cp == parallel.context_parallel_size else ()
        ),
    )


def _distance(sizes: tuple[int, int, int], wanted: tuple[int, int, int]) -> float:
    """Measure how far two layouts are: the sum of the factors between their sizes, in doublings."""
    return sum(abs(math.log2(size / max(1, target))) for size, target in zip(sizes, wanted, strict=True))
