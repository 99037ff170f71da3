"""Rotary position embedding for packed positions.

Megatron-Core's GPTModel makes its own positions (``arange``); a packed sequence restarts them, so queries and keys are
rotated inside the
core attention. Angles are computed in fp32, as Hugging Face does: at long range a more precise angle would be a different model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_longpo.models.architecture import RopeScaling


def inverse_frequencies(head_dim: int, base: float, scaling: RopeScaling | None = None) -> Tensor:
    """Frequencies of the ``head_dim / 2`` rotating planes, fp32.

    Source: RoFormer (arXiv 2104.09864) Eq. 15; the scalings are those of Hugging Face's ``linear`` and ``llama3`` types.
    """
    frequencies = 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    # llama3: keep high frequencies, divide low ones, interpolate between the two wavelengths
    wavelengths = 2 * math.pi / frequencies
    cycles = scaling.original_max_position_embeddings / wavelengths
    smooth = (cycles - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rotary_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles: ``[s] -> [s, d], [s, d]``, fp32."""
    angles = positions.float()[:, None] * frequencies.to(positions.device)[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads ``[s, b, n, d]`` by tables ``[s, d]``, in at least fp32; the result has the dtype of ``states``.

    The first half of a head is paired with the second (Hugging Face's layout of the weights).
    """
    precise = states.to(torch.promote_types(states.dtype, torch.float32))
    first, second = precise.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    cos, sin = cos[:, None, None, :].to(precise.dtype), sin[:, None, None, :].to(precise.dtype)
    return (precise * cos + turned * sin).to(states.dtype)
