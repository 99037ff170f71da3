"""Megatron-Core's pipeline schedules over micro-batches of packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_longpo.parallel.packed_sequence import PackedInput


class HasPackedInput(Protocol):
    """A micro-batch."""

    @property
    def packed(self) -> PackedInput:
        """What the model reads of it."""
        ...


def run_schedule(
    forward_step: Callable[..., Any], model: Sequence[torch.nn.Module], batches: Sequence[HasPackedInput], *, forward_only: bool
) -> list[dict[str, Any]]:
    """Run Megatron-Core's pipeline schedule over batches; every model chunk reads the same ones.

    An interleaved schedule takes a multiple of the pipeline size; a forward-only pass is filled up with the last batch, and
    what the filling reports is dropped.

    Returns:
        What the loss function returned beside the loss, one entry a micro-batch, on the last stage; an empty list elsewhere.
    """
    schedule = get_forward_backward_func()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    filling = -len(batches) % stages if forward_only and len(model) > 1 else 0
    filled = [*batches, *[batches[-1]] * filling]
    with torch.no_grad() if forward_only else torch.enable_grad():
        reported = schedule(
            forward_step_func=forward_step,
            data_iterator=[iter(filled) for _ in model] if len(model) > 1 else iter(filled),
            model=list(model) if len(model) > 1 else model[0],
            num_microbatches=len(filled),
            seq_length=max(batch.packed.length for batch in batches),
            micro_batch_size=1,
            forward_only=forward_only,
        )
    return reported[: len(batches)]
