"""RMSNorm for the local layer spec: it takes sequence parallelism, which Megatron-Core's own wrapper refuses, and keeps little.

PyTorch's ``rms_norm`` is a chain of small operators on a CPU, and its graph keeps the input, the normalised input and the
output: three ``[s, h]`` tensors. One function keeps the input and a number a row; the output is kept by the linear that reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        precise = states.to(torch.promote_types(states.dtype, torch.float32))
        scale = (precise.square().mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(states, weight, scale)
        return (precise * scale).mul_(weight).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grads
        states, weight, scale = ctx.saved_tensors
        normal = states.to(scale.dtype) * scale
        grad = grad.to(scale.dtype)
        # frozen under LoRA
        d_weight = (grad * normal).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        d_normal = grad * weight
        # the scale depends on the whole row: take the component along the row out
        d_states = d_normal.sub_(normal.mul_((d_normal * normal).mean(-1, keepdim=True))).mul_(scale)
        return d_states.to(states.dtype), d_weight, None


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm: ``x / sqrt(mean(x^2) + eps) * weight``, computed in at least fp32.

    Under sequence parallelism each tensor-parallel rank sees its own rows, so the weight's gradient is partial; the
    ``sequence_parallel`` mark makes Megatron-Core sum it when gradients are finalised.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        """Create with a weight of ones, ``[hidden_size]``."""
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last dimension."""
        # of a head norm's input, a slice of the projection, keep the slice and not the whole
        return _RMSNorm.apply(states.contiguous(), self.weight, self.eps)
