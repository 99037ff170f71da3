"""RMSNorm for the local layer spec, with sequence parallelism, which Megatron-Core's own wrapper refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        return torch.nn.functional.rms_norm(states, (states.size(-1),), self.weight, self.eps)
