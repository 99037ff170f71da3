"""Packages that may be absent."""

from __future__ import annotations

import importlib.util


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's PyTorch part is installed."""
    try:
        return importlib.util.find_spec("transformer_engine.pytorch") is not None
    except ModuleNotFoundError:
        return False


def has_apex() -> bool:
    """Whether NVIDIA's Apex is installed (the ``apex`` of PyPI is another project: it has no ``apex.optimizers``)."""
    try:
        return importlib.util.find_spec("apex.optimizers") is not None
    except ModuleNotFoundError:
        return False
