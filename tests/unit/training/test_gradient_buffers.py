"""Gradients exist once: micro-batches add to Megatron-Core's buffer, and the update reads it where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_longpo.config.schema import OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from tests.unit.estimation.test_activations import LLAMA, packed_input


@pytest.fixture
def state() -> Iterator[Any]:
    from megatron_longpo.parallel import state as parallel_state

    yield parallel_state.initialize(ParallelConfig())
    parallel_state.destroy()


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "distributed-optimizer"])
def test_accumulated_gradients_have_one_copy(sharded: bool, state: Any) -> None:
    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.training.optimizer import build_optimizer
    from megatron_longpo.training.step import wrap_data_parallel

    config = RunConfig(
        parallel=ParallelConfig(use_distributed_optimizer=sharded),
        optimizer=OptimizerConfig(lr=1e-3),
        training=TrainingConfig(train_iters=1),
    )
    (model,) = wrap_data_parallel(build_model(LLAMA, config.parallel, config.training, state), config)
    optimizer = build_optimizer(config, [model])
    parameters = list(model.parameters())
    buffers = storages([parameter.main_grad for parameter in parameters])
    numbers = sum(parameter.numel() for parameter in parameters)
    assert sum(buffers.values()) == pytest.approx(4 * numbers, rel=0.05), "more than padding"
    after = []
    for _ in range(2):
        model(packed_input()).sum().backward()
        assert all(parameter.grad is None for parameter in parameters), "a gradient beside the buffer"
        after.append(torch.cat([parameter.main_grad.flatten().clone() for parameter in parameters]))
    assert after[0].abs().max() > 0
    torch.testing.assert_close(after[1], 2 * after[0])
    optimizer.step()
    held = [parameter.grad for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
    assert storages(held).keys() <= buffers.keys(), "the update reads a copy"
