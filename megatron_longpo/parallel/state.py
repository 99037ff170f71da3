"""Process groups of a run, as one value that is passed on."""

from __future__ import annotations

import dataclasses
import datetime
import os

import torch
import torch.distributed as dist

from megatron_longpo.config.layout import world_problems
from megatron_longpo.config.schema import ParallelConfig
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.parallel.context_exchange import ContextExchange
from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class ParallelState:
    """Groups, sizes and ranks. The axes are ordered tp (fastest), cp, dp, pp, as in Megatron-Core.

    Attributes:
        tp_group: ranks that share one layer's weights.
        cp_group: ranks that share one packed sequence.
        pp_group: ranks that hold the stages of one model copy.
        dp_group: ranks that hold different pairs.
        dp_cp_group: ranks over which gradients are averaged.
        exchange: how the ranks of ``cp_group`` share attention.
        sequence_parallel: whether a tensor group shards norms and residuals along the sequence.
    """

    tp_group: dist.ProcessGroup
    cp_group: dist.ProcessGroup
    pp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    dp_cp_group: dist.ProcessGroup
    exchange: ContextExchange
    sequence_parallel: bool

    @property
    def rank(self) -> int:
        """Rank in the world."""
        return dist.get_rank()

    @property
    def sequence_multiple(self) -> int:
        """The number that every packed length is padded to a multiple of."""
        from megatron_longpo.parallel.context_parallel import sequence_multiple

        return sequence_multiple(self.cp_group.size(), self.tp_group.size(), sequence_parallel=self.sequence_parallel)


def initialize(config: ParallelConfig, seed: int = 42, virtual_pipeline_size: int | None = None) -> ParallelState:
    """Join the process group and divide it into parallel groups.

    Works under ``torchrun`` (its environment variables) and under plain ``python`` (one process).

    Args:
        config: sizes of the axes; of the exchange, what `choose_exchange` settled.
        seed: seed of the model-parallel random states.
        virtual_pipeline_size: model chunks on a stage, where the pipeline is interleaved.

    Raises:
        UserError: if the sizes do not divide the number of processes.

    Parallel: creates every group; all ranks must call it.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    cpu_backend.install()
    if not dist.is_initialized():
        _join(config)
    problems = world_problems(config, dist.get_world_size())
    if problems:
        raise UserError("; ".join(problems))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_pipeline_size,
        context_parallel_size=config.context_parallel_size,
        hierarchical_context_parallel_sizes=list(config.hierarchical_context_parallel_sizes) or None,
        distributed_timeout_minutes=config.distributed_timeout_minutes,
        create_gloo_process_groups=cpu_backend.has_cuda(),
    )
    model_parallel_cuda_manual_seed(seed)
    return ParallelState(
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        cp_group=parallel_state.get_context_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        dp_cp_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        exchange=_exchange(config),
        sequence_parallel=config.sequence_parallel,
    )


def _exchange(config: ParallelConfig) -> ContextExchange:
    from megatron.core import parallel_state

    kind = config.cp_comm_type
    if config.context_parallel_size == 1:
        return ContextExchange()
    if kind == "a2a+p2p":
        heads, ring = parallel_state.get_hierarchical_context_parallel_groups()
        return ContextExchange(heads, ring, ring=True)
    group = parallel_state.get_context_parallel_group()
    if kind == "a2a":
        return ContextExchange(heads_group=group)
    if kind not in ("all_gather", "p2p"):
        raise ValueError(f"the exchange {kind!r} is not settled; see config.context_layout.choose_exchange")
    return ContextExchange(keys_group=group, ring=kind == "p2p")


def _join(config: ParallelConfig) -> None:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    timeout = datetime.timedelta(minutes=config.distributed_timeout_minutes)
    if cpu_backend.has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if world_size == 1 and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(
            cpu_backend.communication_backend(), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
    else:
        dist.init_process_group(cpu_backend.communication_backend(), rank=rank, world_size=world_size, timeout=timeout)


def destroy() -> None:
    """Leave every process group."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    parallel_state.destroy_model_parallel()
    get_cuda_rng_tracker().reset()
    if dist.is_initialized():
        dist.destroy_process_group()
