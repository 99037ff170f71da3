"""The training loop: step, validate, log, save, stop."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.batch import RankBatch
from megatron_longpo.models.attention_plan import work_balance
from megatron_longpo.models.flops import StepFlops
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.parallel.collectives import any_rank, reduce_max, reduce_sum
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.training.batches import Share, shares
from megatron_longpo.training.checkpoint import Checkpointer, TrainState
from megatron_longpo.training.data import RunData, packing_options
from megatron_longpo.training.logs import RunLog, peak_memory_bytes
from megatron_longpo.training.optimizer import Schedule
from megatron_longpo.training.reference import RunReference
from megatron_longpo.training.step import NonFiniteLossError, StepContext, train_step
from megatron_longpo.training.task_evaluation import TaskEvaluation
from megatron_longpo.training.validation import evaluate
from megatron_longpo.utils.errors import UserError


class StopRequest:
    """Notes SIGTERM and SIGUSR1 (a scheduler's warning), so that the loop can save at the end of the iteration."""

    def __init__(self) -> None:
        """Install the handlers."""
        self.received = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the loop works with.

    Attributes:
        config: the resolved configuration.
        model: wrapped model chunks.
        optimizer: Megatron-Core optimizer.
        schedule: learning rate by iteration.
        data: pairs.
        reference: reference log-probs.
        checkpointer: saves.
        context: what every step has in common.
        train_iters: iterations of the whole training.
        flops: work of a step, by which global batches are divided.
        tasks: what the model is asked while it trains; None: nothing.
    """

    config: RunConfig
    model: Sequence[DistributedDataParallel]
    optimizer: Any
    schedule: Schedule
    data: RunData
    reference: RunReference
    checkpointer: Checkpointer
    context: StepContext
    train_iters: int
    flops: StepFlops
    tasks: TaskEvaluation | None = None


def train(run: Run, train_state: TrainState, log: RunLog) -> TrainState:
    """Train from ``train_state`` to the end, or until a signal asks to stop.

    Returns:
        The progress that was reached.

    Raises:
        UserError: if an objective or a gradient is not finite, naming the documents; nothing is saved then.
    """
    stop = StopRequest()
    saved_at = train_state.iteration
    upcoming = _shares(run, train_state)
    while train_state.iteration < run.train_iters and not any_rank(stop.received, cpu_backend.device()):
        iteration = train_state.iteration + 1
        metrics = _iterate(run, upcoming, iteration)
        train_state = TrainState(iteration, train_state.consumed_samples + run.context.global_batch_size)
        metrics |= _validate(run, iteration)
        metrics |= _evaluate_tasks(run, iteration)
        log.write(iteration, {"consumed_samples": train_state.consumed_samples, **metrics})
        if _due(run.config.checkpoint.save_interval, iteration):
            saved_at = _save(run, train_state, log)
    if train_state.iteration > saved_at:
        _save(run, train_state, log)
    return train_state


def _shares(run: Run, train_state: TrainState) -> Iterator[Share]:
    left = (run.train_iters - train_state.iteration) * run.context.global_batch_size
    consumed = train_state.consumed_samples
    return shares(run.config, run.data, run.flops, run.context.state, consumed, consumed + left)


def _iterate(run: Run, upcoming: Iterator[Share], iteration: int) -> dict[str, Any]:
    started = time.monotonic()
    state, share = run.context.state, next(upcoming)
    samples = share.micro_batches
    batches = run.reference.batches(samples, packing_options(run.config, state))
    rate = run.schedule.apply(run.optimizer, iteration)
    try:
        metrics = train_step(run.model, run.optimizer, batches, run.context)
    except NonFiniteLossError as error:
        raise UserError(_non_finite(run, iteration, error)) from None
    rows = torch.tensor([sum(batch.packed.length for batch in batches)], dtype=torch.float64, device=cpu_backend.device())
    worst = torch.tensor(
        [time.monotonic() - started, float(peak_memory_bytes())], dtype=torch.float64, device=cpu_backend.device()
    )
    tokens = reduce_sum(rows, state.dp_group).item()
    seconds, memory = reduce_max(worst).tolist()
    speed = {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_memory_bytes": int(memory)}
    return {**metrics, "learning_rate": rate, **speed, **_balance(share, batches, state)}


def _balance(share: Share, batches: Sequence[RankBatch], state: ParallelState) -> dict[str, float]:
    """Work of the busiest rank over the mean: between context ranks, of the worst micro-batch; between data ranks, if planned."""
    group, found = state.exchange.keys_group, {}
    if group is not None:
        found["context_balance"] = max(work_balance(b.packed.chains, b.packed.length, group.size()) for b in batches)
    if share.balance is not None:
        found |= {"micro_batches": len(batches), "work_balance": share.balance}
    return found


def _non_finite(run: Run, iteration: int, error: NonFiniteLossError) -> str:
    names = [f"{run.data.datasets[d].document_id(i)} (pair {i} of {run.data.datasets[d].prefix})" for d, i in error.samples]
    return (
        f"iteration {iteration}: {error.what} is not finite for documents {', '.join(names)}; nothing was saved. "
        "Lower --lr, or look at the documents with tools/inspect_preference_data.py"
    )


def _due(interval: int | None, iteration: int) -> bool:
    return interval is not None and iteration % interval == 0


def _validate(run: Run, iteration: int) -> dict[str, float]:
    training = run.config.training
    if not _due(training.eval_interval, iteration):
        return {}
    limit = None if training.eval_iters is None else training.eval_iters * training.global_batch_size
    metrics = evaluate(run.model, run.data.validation[:limit], run.config, run.data, run.reference, run.context)
    return {f"validation/{name}": value for name, value in metrics.items()}


def _evaluate_tasks(run: Run, iteration: int) -> dict[str, float]:
    is_due = _due(run.config.evaluation.eval_tasks_interval, iteration) or iteration == run.train_iters
    return run.tasks.measure(run.model) if run.tasks is not None and is_due else {}


def _save(run: Run, train_state: TrainState, log: RunLog) -> int:
    checkpoint = run.config.checkpoint
    if checkpoint.save:
        assets = run.config.model.pretrained_checkpoint
        assert assets is not None
        folder = run.checkpointer.save(checkpoint.save, train_state, assets, checkpoint.keep_checkpoints)
        log.say(f"saved {folder}")
    return train_state.iteration
