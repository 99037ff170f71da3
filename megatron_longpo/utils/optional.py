"""Packages that may be absent."""

from __future__ import annotations

import importlib.util


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's PyTorch part is installed."""
    try:
        return importlib.util.find_spec("transformer_engine.pytorch") is not None
    except ModuleNotFoundError:
        return False


def has_fused_weight_gradients() -> bool:
    """Whether the CUDA extension is built that adds weight gradients inside the matrix multiplication (a part of NVIDIA's Apex).

    Megatron-Core's own linears, the head among them, refuse to be built for it without, Transformer Engine or not.
    """
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
