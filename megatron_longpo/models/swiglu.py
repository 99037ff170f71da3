"""SwiGLU for the local layer spec, keeping its input only.

Megatron-Core's unfused gated unit keeps the input ``[s, 2f]``, the gate's activation, the other half (it adds an offset of
zero to it) and the product: ``5 f`` numbers a row, and its fused one is compiled, for seconds, where there is no GPU. This one
keeps ``2 f``, and the product ``f`` is kept by the linear that reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        gate, up = states.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (states,) = ctx.saved_tensors
        gate, up = states.chunk(2, dim=-1)
        d_states = torch.empty_like(states)
        d_gate, d_up = d_states.chunk(2, dim=-1)
        # no buffer but the result: this is where a layer's backward needs most
        torch.ops.aten.silu.out(gate, out=d_up).mul_(grad)
        torch.mul(grad, up, out=d_gate)
        torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
        return d_states


class SwiGLU(MegatronModule):
    """``silu(gate) * up`` of ``[.., gate | up]``. Megatron-Core builds it, and asks it for its (absent) checkpoint shards."""

    def __init__(self, config: Any) -> None:
        """Take the model's configuration."""
        super().__init__(config=config)

    def forward(self, states: Tensor) -> Tensor:
        """``[.., 2f] -> [.., f]``."""
        return _SwiGLU.apply(states)
