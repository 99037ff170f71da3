"""Optimizer state in and out of a distributed checkpoint, with three repairs for PyTorch's AdamW.

Megatron-Core's distributed optimizer is written around the Adam of Apex and Transformer Engine, which keeps its step count in
the parameter
group. PyTorch's AdamW, used where neither is installed, keeps one a parameter, and loading then goes wrong in three places:

1. ``state_dict`` of an optimizer that has not stepped yet asserts that every parameter has a step: `before_load` makes one.
2. the reshardable formats do not store the step a parameter, but loading asks for it: `before_load` hands back the one at hand.
3. after loading, all parameters share *one* step tensor, so every update adds as many steps as there are parameters. Weights load
   exactly and the next updates are wrong, silently: `after_load` gives each parameter its own.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_longpo.training.optimizer import inner_optimizers

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""The format that can be loaded in any layout (the default one fails on save in this Megatron-Core)."""


def sharded_state(optimizer: Any, model_state: dict[str, Any], *, is_loading: bool) -> Any:
    """The optimizer's part of a sharded state dict, given the model's."""
    return optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=SHARDING)


def _torch_adams(optimizer: Any) -> list[Any]:
    return [
        inner
        for inner in inner_optimizers(optimizer)
        if isinstance(inner, DistributedOptimizer) and isinstance(inner.optimizer, (torch.optim.Adam, torch.optim.AdamW))
    ]


def before_load(optimizer: Any) -> None:
    """Prepare a fresh optimizer for `sharded_state` with ``is_loading`` and for ``load_state_dict``."""
    for inner in _torch_adams(optimizer):
        for group in inner.optimizer.param_groups:
            for param in group["params"]:
                if not inner.optimizer.state[param]:
                    zeros = (torch.zeros_like(param), torch.zeros_like(param))
                    inner.optimizer.state[param] = {"step": torch.tensor(0.0), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        _supply_step(inner)


def _supply_step(inner: Any) -> None:
    set_state = inner._set_main_param_and_optimizer_states
    if getattr(set_state, "supplies_step", False):
        return

    def with_step(model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> Any:
        group, order = inner.model_param_group_index_map[model_param]
        main_param = inner.optimizer.param_groups[group]["params"][order]
        return set_state(model_param, {"step": inner.optimizer.state[main_param]["step"], **tensors})

    with_step.__dict__["supplies_step"] = True
    inner._set_main_param_and_optimizer_states = with_step


def after_load(optimizer: Any) -> None:
    """Give every parameter a step count of its own."""
    for inner in inner_optimizers(optimizer):
        for state in inner.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()
