"""One flash-attention block, forward and backward, on whatever device the tensors are.

Both functions take tensors in ``[b, heads, s, d]`` order (any strides with a dense last dimension), keys and values with the
heads of their groups only: the kernels read grouped heads as they are. PyTorch's own operators are used on both devices:

* CPU: ``aten::_scaled_dot_product_flash_attention_for_cpu`` and its backward.
* CUDA: ``aten::_scaled_dot_product_flash_attention`` and its backward (signatures of PyTorch 2.13). Not run on a GPU yet.

A block's backward takes the *merged* output and log-sum-exp of all blocks of its queries: it needs them only for the row
normaliser and for ``rowsum(dO * O)``, so the sum of the blocks' gradients is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_forward(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attend one block.

    Args:
        query: ``[b, n, sq, d]``.
        key: ``[b, g, sk, d]``, ``n`` a multiple of ``g``.
        value: like ``key``.
        causal: row ``i`` sees keys ``0..i``; needs ``sq == sk``.
        scale: factor of the scores.

    Returns:
        Output ``[b, n, sq, d]`` in the query's dtype, and the natural log-sum-exp of the scaled scores ``[b, n, sq]``, in
        fp32 (fp64 for fp64 input).
    """
    if causal and query.size(2) != key.size(2):
        raise ValueError(f"a causal block needs as many queries as keys, got {query.size(2)} and {key.size(2)}")
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
    return result[0], result[1]


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
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
    no_dropout = torch.zeros((), dtype=torch.int64, device=query.device)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        lse,
        None,
        None,
        query.size(2),
        key.size(2),
        0.0,
        causal,
        no_dropout,
        no_dropout,
        scale=scale,
    )
    return grads[0], grads[1], grads[2]
