"""One flash-attention block, forward and backward, on whatever device the tensors are.

Tensors come in ``[b, heads, s, d]`` order (any strides with a dense last dimension), keys and values with the heads of their
groups only: the kernels read grouped heads as they are. The kernel is chosen by what the machine has:

* CPU: PyTorch's ``aten::_scaled_dot_product_flash_attention_for_cpu`` and its backward.
* CUDA with the flash-attn package: its ``_flash_attn_forward`` and ``_flash_attn_backward`` (flash-attn 2.7 and 2.8).
* CUDA without: PyTorch's ``aten::_scaled_dot_product_flash_attention`` and its backward (signatures of PyTorch 2.13).

Neither CUDA kernel has been run on a GPU yet; ``tests/gpu`` is what to run there. Both are called below the wrappers that pad
heads and make tensors contiguous, so that is seen to here.

A block's backward takes the *merged* output and log-sum-exp of all blocks of its queries: it needs them only for the row
normaliser and for ``rowsum(dO * O)``, so the sum of the blocks' gradients is exact.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_longpo.utils.errors import UserError


class BlockForward(Protocol):
    """See `block_forward`."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float, /) -> tuple[Tensor, Tensor]: ...  # noqa: D102


class BlockBackward(Protocol):
    """See `block_backward`."""

    def __call__(  # noqa: D102
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclasses.dataclass(frozen=True)
class AttentionKernel:
    """A library's kernels behind one signature.

    Attributes:
        name: which library's.
        forward: see `block_forward`.
        backward: see `block_backward`.
    """

    name: str
    forward: BlockForward
    backward: BlockBackward


@functools.cache
def select_kernel(device_type: str, dtype: torch.dtype, head_dim: int) -> AttentionKernel:
    """The kernel for tensors of a device, a dtype and a head dimension.

    Raises:
        UserError: on a GPU for what flash kernels do not take: a dtype other than bf16 and fp16, or a head dimension that is no
            multiple of 8 or above 256.
    """
    if device_type == "cpu":
        return AttentionKernel("PyTorch's CPU flash attention", _cpu_forward, _cpu_backward)
    if dtype not in (torch.bfloat16, torch.float16):
        raise UserError(f"attention on a GPU needs --bf16: flash kernels do not take {str(dtype).removeprefix('torch.')}")
    if head_dim % 8 or head_dim > 256:
        raise UserError(
            f"flash kernels on a GPU take heads of 8, 16, ... or 256 channels, and this model's have {head_dim}; "
            "train it on a CPU, or take another model (with --random-init: another --kv-channels)"
        )
    if importlib.util.find_spec("flash_attn") is not None:
        return AttentionKernel("flash-attn", _package_forward, _package_backward)
    return AttentionKernel("PyTorch's CUDA flash attention", _cuda_forward, _cuda_backward)


def _kernel_for(query: Tensor) -> AttentionKernel:
    return select_kernel(query.device.type, query.dtype, query.size(-1))


def block_forward(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attend one block.

    Args:
        query: ``[b, n, sq, d]``.
        key: ``[b, g, sk, d]``, ``n`` a multiple of ``g``.
        value: like ``key``.
        causal: row ``i`` sees keys ``0..i``; needs ``sq == sk``, since libraries differ in how they align unequal lengths.
        scale: factor of the scores.

    Returns:
        Output ``[b, n, sq, d]`` in the query's dtype, and the natural log-sum-exp of the scaled scores ``[b, n, sq]``, in
        fp32 (fp64 for fp64 input).
    """
    if causal and query.size(2) != key.size(2):
        raise ValueError(f"a causal block needs as many queries as keys, got {query.size(2)} and {key.size(2)}")
    return _kernel_for(query).forward(query, key, value, causal, scale)


def block_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block, given the merged output and log-sum-exp of its queries.

    Args:
        grad: gradient of the merged output, ``[b, n, sq, d]``.
        query: as in `block_forward`; so are ``key``, ``value``, ``causal`` and ``scale``.
        key: see `block_forward`.
        value: see `block_forward`.
        out: merged output ``[b, n, sq, d]``.
        lse: merged log-sum-exp ``[b, n, sq]``.
        causal: see `block_forward`.
        scale: see `block_forward`.

    Returns:
        Gradients of query, key and value, in their shapes.
    """
    return _kernel_for(query).backward(grad, query, key, value, out, lse, causal, scale)


def _cpu_forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)


def _cpu_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, lse, 0.0, causal, scale=scale
    )


def _cuda_forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
    return result[0], result[1]


def _cuda_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    no_dropout = query.new_zeros((), dtype=torch.int64)
    lengths = (None, None, query.size(2), key.size(2))
    # The kernel reads the log-sum-exp from its address on, without strides: of a slice of rows it would silently read others'.
    # Of query, key and value it reads the strides, and grad and out it makes contiguous by itself.
    lse = lse.contiguous()
    grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad, query, key, value, out, lse, *lengths, 0.0, causal, no_dropout, no_dropout, scale=scale
    )
    return grads[0], grads[1], grads[2]


def _package_settings(causal: bool, scale: float) -> dict[str, Any]:
    """Plain attention, in the words of flash-attn: no window, no soft cap, no ALiBi, no dropout."""
    return {
        "dropout_p": 0.0,
        "softmax_scale": scale,
        "causal": causal,
        "window_size_left": -1,
        "window_size_right": -1,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


def _package_forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    from flash_attn.flash_attn_interface import _flash_attn_forward

    rows_second = (states.transpose(1, 2) for states in (query, key, value))  # [b, s, n, d]
    out, lse, _, _ = _flash_attn_forward(*rows_second, **_package_settings(causal, scale), return_softmax=False)
    return out.transpose(1, 2), lse


def _package_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.flash_attn_interface import _flash_attn_backward

    grad, query, key, value, out = (states.transpose(1, 2) for states in (grad, query, key, value, out))
    made = [torch.empty_like(states, memory_format=torch.contiguous_format) for states in (query, key, value)]
    lse = lse.contiguous()  # read without strides; of the others the package reads strides, or copies them
    deterministic = torch.are_deterministic_algorithms_enabled()
    _flash_attn_backward(
        *(grad, query, key, value, out, lse, *made), **_package_settings(causal, scale), deterministic=deterministic
    )
    d_query, d_key, d_value = (states.transpose(1, 2) for states in made)
    return d_query, d_key, d_value
