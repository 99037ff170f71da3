"""The learning rate is a function of the iteration, and RMSprop through Adam is RMSprop."""

from __future__ import annotations

import itertools
import types

import pytest
import torch

from megatron_longpo.config.schema import OptimizerConfig
from megatron_longpo.training.optimizer import Schedule


def rates(iterations: int, **settings: object) -> list[float]:
    schedule = Schedule(OptimizerConfig(lr=1.0, **settings), iterations)  # type: ignore[arg-type]
    return [schedule.learning_rate(iteration) for iteration in range(1, iterations + 1)]


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert rates(10, lr_warmup_iters=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_tenth_of_the_training_is_warm_up_by_default() -> None:
    found = rates(40)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[5] < 1.0


def test_linear_decay_goes_in_equal_steps_and_wastes_no_iteration_at_the_floor() -> None:
    assert rates(4, lr_warmup_iters=0, lr_decay_style="linear", min_lr=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_decay_is_half_way_down_in_the_middle() -> None:
    found = rates(8, lr_warmup_iters=0, lr_decay_style="cosine")
    assert found[4] == pytest.approx(0.5)
    assert all(earlier > later for earlier, later in itertools.pairwise(found))


def test_a_constant_rate_stays_at_the_peak() -> None:
    assert rates(5, lr_warmup_iters=1, lr_decay_style="constant") == [1.0] * 5


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rmsprop_through_adam_is_torch_s_rmsprop(weight_decay: float) -> None:
    config = OptimizerConfig(
        optimizer="rmsprop", lr=0.01, lr_decay_style="constant", lr_warmup_iters=0, rmsprop_alpha=0.9, rmsprop_eps=1e-3,
        weight_decay=weight_decay,
    )  # fmt: skip
    start = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    adam = torch.optim.AdamW([ours], lr=1.0, betas=(0.0, 0.9), eps=1.0, weight_decay=weight_decay)
    rmsprop = torch.optim.RMSprop([theirs], lr=0.01, alpha=0.9, eps=1e-3)
    wrapped = types.SimpleNamespace(param_groups=adam.param_groups)
    schedule = Schedule(config, 20)
    for iteration in range(1, 21):
        gradient = torch.randn(50, generator=torch.Generator().manual_seed(iteration), dtype=torch.float64)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        schedule.apply(wrapped, iteration)
        adam.step()
        with torch.no_grad():
            theirs.mul_(1 - 0.01 * weight_decay)  # torch's own decay is not decoupled
        rmsprop.step()
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert not torch.allclose(ours, start, atol=1e-2)
