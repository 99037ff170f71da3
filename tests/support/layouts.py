"""One training iteration in any layout, with everything that must not depend on the layout written out whole.

Functions here run inside the ranks of a worker pool. Gradients and weights are written as a distributed checkpoint, which
puts shards together by Megatron-Core's own description of them, and read back without a process group.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_longpo.config.schema import ParallelConfig, RunConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of the axes, and options that go with them."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    sp: bool = False
    vpp_layers: int | None = None
    distributed_optimizer: bool = False
    overlap: bool = False
    exchange: str = "auto"
    hierarchy: tuple[int, ...] = ()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp * self.pp * self.cp * self.dp

    def parallel(self) -> ParallelConfig:
        """The configuration group."""
        return ParallelConfig(
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            context_parallel_size=self.cp,
            sequence_parallel=self.sp,
            num_layers_per_virtual_pipeline_stage=self.vpp_layers,
            use_distributed_optimizer=self.distributed_optimizer,
            overlap_grad_reduce=self.overlap,
            cp_comm_type=self.exchange,  # type: ignore[arg-type]
            hierarchical_context_parallel_sizes=self.hierarchy,
        )

    def __str__(self) -> str:
        flags = [name for name, on in (("sp", self.sp), ("vpp", self.vpp_layers), ("distopt", self.distributed_optimizer)) if on]
        flags += ["overlap"] if self.overlap else []
        flags += [self.exchange] if self.exchange != "auto" else []
        return "-".join([f"tp{self.tp}", f"pp{self.pp}", f"cp{self.cp}", f"dp{self.dp}", *flags, *map(str, self.hierarchy)])


def train_and_dump(config: RunConfig, folder: str, iterations: int) -> dict[str, Any]:
    """Train ``iterations`` iterations as `pretrain` does and write gradients of the first and weights after the last.

    Args:
        config: a whole run's configuration; ``save`` is not used.
        folder: gets ``gradients/`` and ``weights/``.
        iterations: number of updates.

    Returns:
        Metrics of every iteration.
    """
    from megatron_longpo.config.context_layout import settle_exchange
    from megatron_longpo.config.layout import check_layout
    from megatron_longpo.models.flops import step_flops
    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.models.lora import add_adapters
    from megatron_longpo.models.transformer_config import apply_overrides, virtual_pipeline_size
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.training.batches import shares
    from megatron_longpo.training.checkpoint import gather_weights, load_weights
    from megatron_longpo.training.data import open_data, packing_options
    from megatron_longpo.training.optimizer import Schedule, build_optimizer
    from megatron_longpo.training.pretrained import read_record
    from megatron_longpo.training.reference import RunReference
    from megatron_longpo.training.step import StepContext, reduce_reports, run_batches, wrap_data_parallel
    from tests.support.adapters import fill_adapters

    record = read_record(str(config.model.pretrained_checkpoint))
    architecture = apply_overrides(record.architecture, config.model, config.data.seq_length)
    check_layout(config.parallel, architecture, dist.get_world_size())
    config, _ = settle_exchange(config, architecture, ranks_per_node=1)
    data = open_data(config.data, config.training.seed, architecture)
    state = parallel_state.initialize(config.parallel, 1, virtual_pipeline_size(architecture, config.parallel))
    try:
        chunks = build_model(architecture, config.parallel, config.training, state)
        load_weights(chunks, str(config.model.pretrained_checkpoint))
        if config.lora.lora_rank is not None:
            add_adapters(chunks, config.lora, config.training.seed)
            fill_adapters(chunks)
        model = wrap_data_parallel(chunks, config)
        optimizer = build_optimizer(config, model)
        reference = RunReference(config, data, state)
        reference.share(model)
        size = config.training.global_batch_size
        context = StepContext(config.objective, size, data.max_turns, state)
        stream = shares(config, data, step_flops(architecture), state, 0, iterations * size)
        schedule = Schedule(config.optimizer, iterations)
        history = []
        for iteration in range(1, iterations + 1):
            samples = next(stream).micro_batches
            batches = reference.batches(samples, packing_options(config, state))
            schedule.apply(optimizer, iteration)
            for chunk in model:
                chunk.zero_grad_buffer()
            optimizer.zero_grad()
            metrics = reduce_reports(run_batches(model, batches, context, forward_only=False), context)
            if iteration == 1 and not config.parallel.use_distributed_optimizer:
                dump(chunks, Path(folder) / "gradients", gradients=True)
            _, grad_norm, _ = optimizer.step()
            history.append({**metrics, "grad_norm": float(grad_norm)})
        gather_weights(model)
        dump(chunks, Path(folder) / "weights", gradients=False)
        return {"metrics": history}
    finally:
        parallel_state.destroy()


def dump(chunks: Any, folder: Path, *, gradients: bool) -> None:
    """Write parameters, or their gradients under the same names, as a distributed checkpoint."""
    from megatron.core import dist_checkpointing

    from megatron_longpo.training.checkpoint import model_state

    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    state = model_state(chunks)
    if gradients:
        for index, chunk in enumerate(chunks):
            shards = state["model" if len(chunks) == 1 else f"model{index}"]
            for name, parameter in chunk.named_parameters():
                if parameter.requires_grad:
                    shards[name].data = parameter.main_grad
    dist_checkpointing.save(state, str(folder))


def read_dump(folder: Path) -> dict[str, torch.Tensor]:
    """Whole tensors of a dump, in one process without a group."""
    from torch.distributed.checkpoint import FileSystemReader, load

    metadata = FileSystemReader(folder).read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    return tensors
