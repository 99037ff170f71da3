"""Optimizers: Megatron-Core's Adam and SGD, and RMSprop expressed through its Adam."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer import OptimizerConfig as McoreOptimizerConfig

from megatron_longpo.config.schema import OptimizerConfig, RunConfig
from megatron_longpo.parallel import cpu_backend


def build_optimizer(config: RunConfig, model: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """Build the optimizer over wrapped model chunks. Norms and biases are exempt from weight decay.

    RMSprop is Adam with ``beta1 = 0`` whose step size and epsilon undo the bias correction; see `Schedule.apply`. It
    therefore works wherever Adam
    does: with the distributed optimizer, with Apex or Transformer Engine, in checkpoints.
    """
    ours = config.optimizer
    rmsprop = ours.optimizer == "rmsprop"
    settings = McoreOptimizerConfig(
        optimizer="sgd" if ours.optimizer == "sgd" else "adam",
        lr=ours.lr,
        min_lr=ours.min_lr,
        weight_decay=ours.weight_decay,
        adam_beta1=0.0 if rmsprop else ours.adam_beta1,
        adam_beta2=ours.rmsprop_alpha if rmsprop else ours.adam_beta2,
        adam_eps=ours.rmsprop_eps if rmsprop else ours.adam_eps,
        sgd_momentum=ours.sgd_momentum,
        clip_grad=ours.clip_grad,
        bf16=config.training.bf16,
        params_dtype=torch.bfloat16 if config.training.bf16 else torch.float32,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
        optimizer_cpu_offload=ours.optimizer_cpu_offload,
        optimizer_offload_fraction=ours.optimizer_offload_fraction if ours.optimizer_cpu_offload else 0.0,
        # without it the distributed optimizer keeps fp32 weights on the GPU beside those that the update works on
        use_precision_aware_optimizer=ours.optimizer_cpu_offload,
    )
    return get_megatron_optimizer(
        settings,
        list(model),
        config_overrides=get_standard_config_overrides(settings),
        use_gloo_process_groups=cpu_backend.has_cuda(),
    )


def inner_optimizers(optimizer: Any) -> list[Any]:
    """The Megatron-Core optimizers inside a chained one."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate as a pure function of the iteration, so that a resumed run needs no state of it.

    Attributes:
        config: peak, floor, decay and warm-up.
        train_iters: iterations of the whole training.
    """

    config: OptimizerConfig
    train_iters: int

    @property
    def warmup_iters(self) -> int:
        """Iterations of the linear warm-up."""
        if self.config.lr_warmup_iters is not None:
            return self.config.lr_warmup_iters
        fraction = 0.1 if self.config.lr_warmup_fraction is None else self.config.lr_warmup_fraction
        return math.ceil(fraction * self.train_iters) if fraction else 0

    def learning_rate(self, iteration: int) -> float:
        """Learning rate of an iteration, counted from 1.

        The warm-up ends at the peak and the decay starts there; ``min_lr`` would be reached one iteration after the last, so that
        no iteration is spent at a learning rate of zero.
        """
        peak, floor, warmup = self.config.lr, self.config.min_lr, self.warmup_iters
        if iteration <= warmup:
            return peak * iteration / warmup
        if self.config.lr_decay_style == "constant":
            return peak
        progress = min(1.0, (iteration - 1 - warmup) / max(1, self.train_iters - warmup))
        remaining = 1 - progress if self.config.lr_decay_style == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (peak - floor) * remaining

    def apply(self, optimizer: Any, iteration: int) -> float:
        """Set every parameter group for an iteration and return the learning rate.

        For RMSprop: Adam divides the second moment by ``c = 1 - alpha^t``. With step size ``lr / sqrt(c)`` and epsilon ``eps
        / sqrt(c)`` its update
        ``lr/sqrt(c) * g / (sqrt(v / c) + eps/sqrt(c))`` is RMSprop's ``lr * g / (sqrt(v) + eps)`` exactly.
        """
        rate = self.learning_rate(iteration)
        correction = math.sqrt(1 - self.config.rmsprop_alpha**iteration) if self.config.optimizer == "rmsprop" else 1.0
        for inner in inner_optimizers(optimizer):
            for group in inner.param_groups:
                group["lr"] = rate / correction * group.get("lr_mult", 1.0)
                group["weight_decay"] = self.config.weight_decay * correction * group.get("wd_mult", 1.0)
                if self.config.optimizer == "rmsprop":
                    group["eps"] = self.config.rmsprop_eps / correction
        return rate
