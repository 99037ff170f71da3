"""One iteration: forward and backward over the micro-batches, then metrics, then the update."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from torch import Tensor

from megatron_longpo.config.schema import ObjectiveConfig, RunConfig
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.losses.metrics import metric_means, metric_names, metric_sums
from megatron_longpo.losses.objective import PairTables, longpo_objective
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.parallel.collectives import any_rank, broadcast_from_last, gather_objects, reduce_sum
from megatron_longpo.parallel.pipeline import run_schedule
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.reference.scoring import policy_sums


class NonFiniteLossError(RuntimeError):
    """The objective or the gradient of some pairs is not finite.

    Attributes:
        samples: (dataset, index) of the pairs.
        what: which of the two.
    """

    def __init__(self, samples: list[tuple[int, int]], what: str) -> None:
        """Take the offending pairs."""
        super().__init__(f"{what} of pairs {samples} is not finite")
        self.samples, self.what = samples, what


@dataclasses.dataclass(frozen=True)
class StepContext:
    """What every step of a run has in common.

    Attributes:
        objective: weights and kind of the terms.
        global_batch_size: pairs of an iteration over all data-parallel ranks.
        max_turns: turns of the longest pair of the run.
        state: groups.
    """

    objective: ObjectiveConfig
    global_batch_size: int
    max_turns: int
    state: ParallelState


def wrap_data_parallel(model: Sequence[LogProbGPTModel], config: RunConfig) -> list[DistributedDataParallel]:
    """Wrap model chunks in Megatron-Core's DDP: fp32 gradients, averaged over the data- and context-parallel group."""
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )
    wrapped = [
        DistributedDataParallel(chunk.config, settings, chunk, disable_bucketing=index > 0 and not settings.overlap_grad_reduce)
        for index, chunk in enumerate(model)
    ]
    shared = model[0].config
    shared.finalize_model_grads_func = finalize_model_grads
    if config.parallel.overlap_grad_reduce:
        hooks = [chunk.no_sync for chunk in wrapped]
        shared.no_sync_func = hooks if len(hooks) > 1 else hooks[0]
    return wrapped


def batch_loss(batch: RankBatch, log_probs: Tensor, context: StepContext, num_microbatches: int) -> tuple[Tensor, dict[str, Any]]:
    """Objective of one micro-batch, as Megatron-Core's schedule wants it.

    The batch loss is ``(1 / global_batch_size) * sum over documents``. Megatron-Core multiplies a loss by the
    context-parallel size and divides it by the number of micro-batches, and DDP averages gradients over data and context
    ranks. What is left to do here is to undo the division by micro-batches and data-parallel ranks, whatever number of pairs
    each micro-batch holds.

    Returns:
        The scaled loss, float64 scalar, and ``{"metrics": [m, 2], "bad": samples with a non-finite objective}``.

    Parallel: the context group, see `policy_sums`.
    """
    whole = batch.whole
    sums = policy_sums(log_probs, batch, context.state.cp_group)
    tables = PairTables(*(getattr(whole, field.name) for field in dataclasses.fields(PairTables)))
    output = longpo_objective(sums, tables, context.objective)
    scale = num_microbatches * context.state.dp_group.size() / context.global_batch_size
    finite = output.loss.detach().isfinite()
    reported = {
        "metrics": metric_sums(output, sums, tables, context.max_turns),
        "bad": [tuple(sample) for sample in whole.sample_ids[~finite].tolist()],
    }
    return output.loss.sum() * scale, reported


def run_batches(
    model: Sequence[torch.nn.Module], batches: Sequence[RankBatch], context: StepContext, *, forward_only: bool
) -> list[dict[str, Any]]:
    """Forward (and backward) over this rank's micro-batches; gradients are left finalised in the model.

    Returns:
        `batch_loss`'s report of each micro-batch, on the last stage; what `reduce_reports` takes.

    Parallel: the pipeline schedule; in training, gradients over every group.
    """

    def forward(iterator: Iterator[RankBatch], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(iterator)
        loss = functools.partial(batch_loss, batch, context=context, num_microbatches=len(batches))
        return chunk(batch.packed), loss

    return run_schedule(forward, model, batches, forward_only=forward_only)


def reduce_reports(reported: list[dict[str, Any]], context: StepContext) -> dict[str, float]:
    """Sum the last stage's reports over micro-batches and data-parallel ranks and give every rank the means.

    Raises:
        NonFiniteLossError: on every rank, if any pair's objective is not finite.

    Parallel: the data-parallel and pipeline groups.
    """
    state, device = context.state, cpu_backend.device()
    bad = [sample for report in reported for sample in report["bad"]]
    if any_rank(bool(bad), device):
        raise NonFiniteLossError(sorted({sample for found in gather_objects(bad) for sample in found}), "the objective")
    totals = torch.zeros(len(metric_names(context.max_turns)), 2, dtype=torch.float64, device=device)
    for report in reported:
        totals += report["metrics"]
    totals = broadcast_from_last(reduce_sum(totals, state.dp_group), state.pp_group)
    return metric_means(totals, context.max_turns)


def train_step(
    model: Sequence[DistributedDataParallel], optimizer: Any, batches: Sequence[RankBatch], context: StepContext
) -> dict[str, float]:
    """One update.

    Returns:
        Metrics of the global batch and ``grad_norm``, the norm of the whole gradient before clipping.

    Raises:
        NonFiniteLossError: on every rank; before the update where the objective itself is not finite.

    Parallel: every group.
    """
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    metrics = reduce_reports(run_batches(model, batches, context, forward_only=False), context)
    _, grad_norm, _ = optimizer.step()
    if not math.isfinite(grad_norm):
        mine = {tuple(sample) for batch in batches for sample in batch.whole.sample_ids.tolist()}
        raise NonFiniteLossError(sorted(set().union(*gather_objects(mine))), "the gradient")
    metrics["grad_norm"] = float(grad_norm)
    return metrics
