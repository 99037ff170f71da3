"""What crosses ranks outside Megatron-Core, each with its law for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup


class _SumForwardIdentityBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        total = partial.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def sum_over_context(partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Sum the context-parallel ranks' parts; every rank gets the whole.

    Every rank goes on to compute the same loss from the sum, so the gradient of its own part is the gradient of the sum:
    backward is the identity. (A plain in-place all-reduce of a tensor that carries gradients gives the same numbers only by
    accident of autograd not seeing it; reducing the gradient too would count it ``cp`` times.)

    Parallel: all-reduce over the context group forward, none backward.
    """
    return partial if group.size() == 1 else _SumForwardIdentityBackward.apply(partial, group)


def broadcast_from_first(tensors: list[torch.Tensor] | None, group: ProcessGroup, device: torch.device) -> list[torch.Tensor]:
    """Give every rank of a group the tensors of its first rank.

    Args:
        tensors: on the first rank, int64 or float64 tensors of any shape; ignored elsewhere (pass None).
        group: for batches, the tensor-parallel group.
        device: where the received tensors live.

    Returns:
        The tensors, on ``device``, in order.

    Parallel: four broadcasts over ``group`` (sizes, shapes, integers, floats), whatever the number of tensors.
    """
    if group.size() == 1:
        assert tensors is not None
        return [t.to(device) for t in tensors]
    source = dist.get_global_rank(group, 0)
    described: list[int] = []
    sizes = torch.zeros(3, dtype=torch.int64)
    if tensors is not None:
        for tensor in tensors:
            described += [int(tensor.dtype.is_floating_point), tensor.dim(), *tensor.shape]
        whole = [t for t in tensors if not t.dtype.is_floating_point]
        real = [t for t in tensors if t.dtype.is_floating_point]
        sizes = torch.tensor([len(described), sum(t.numel() for t in whole), sum(t.numel() for t in real)])
    sizes = sizes.to(device)
    dist.broadcast(sizes, source, group=group)
    lengths = sizes.tolist()
    payloads = []
    for length, dtype, parts in zip(
        lengths,
        (torch.int64, torch.int64, torch.float64),
        ([torch.tensor(described)], whole, real) if tensors is not None else (None, None, None),
        strict=True,
    ):
        payload = torch.zeros(length, dtype=dtype, device=device)
        if parts:
            payload = torch.cat([p.reshape(-1) for p in parts]).to(device=device, dtype=dtype)
        if length:
            dist.broadcast(payload, source, group=group)
        payloads.append(payload)
    return _unflatten(payloads[0].tolist(), payloads[1], payloads[2])


def _unflatten(described: list[int], whole: torch.Tensor, real: torch.Tensor) -> list[torch.Tensor]:
    tensors, at, used = [], 0, [0, 0]
    while at < len(described):
        is_real, dim = described[at], described[at + 1]
        shape = described[at + 2 : at + 2 + dim]
        at += 2 + dim
        count = 1
        for extent in shape:
            count *= extent
        tensors.append((real if is_real else whole)[used[is_real] : used[is_real] + count].reshape(shape))
        used[is_real] += count
    return tensors


def reduce_sum(tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Sum over a group, in place; not differentiable.

    Parallel: all-reduce over ``group``.
    """
    if group.size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def reduce_max(tensor: torch.Tensor, group: ProcessGroup | None = None) -> torch.Tensor:
    """Largest over a group (the world by default), in place; not differentiable.

    Parallel: all-reduce over ``group``.
    """
    if dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor


def broadcast_from_last(tensor: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Give every rank of a group the tensor of its last rank, in place (of a pipeline group: the stage that knows the loss).

    Parallel: broadcast over ``group``.
    """
    if group.size() > 1:
        dist.broadcast(tensor, dist.get_global_rank(group, group.size() - 1), group=group)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` holds on any rank of the world.

    Parallel: all-reduce over the world.
    """
    return bool(reduce_max(torch.tensor(float(flag), device=device)).item())


def gather_objects(value: object, group: ProcessGroup | None = None) -> list[Any]:
    """Every rank's small Python value, in rank order, on every rank.

    Parallel: all-gather over ``group`` (the world by default).
    """
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
