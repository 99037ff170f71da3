"""How the ranks that share a packed sequence bring its queries and its keys together.

Three ways, and their combination, all under one interface:

* ``all_gather``: every rank gathers all keys and values; gradients are reduce-scattered.
* ``p2p``: keys and values travel round a ring while the rank attends to those that it has (Ring Attention, arXiv 2310.01889).
* ``a2a``: ranks trade parts of the sequence for heads, so that each has few heads of everything (Ulysses, arXiv 2309.14509).
* ``a2a+p2p``: neighbours trade for heads, and rings go over what they then hold.

Other ranks' keys and values are not kept for the backward pass: they are gathered or sent again. What was traded for
heads is kept: it is as large as a rank's own. Tensors are sequence first, ``[s, b, heads, d]``;
keys and values travel as one, ``[s, 2, b, heads, d]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longpo.parallel.context_parallel import Run, zigzag_join, zigzag_runs, zigzag_split

ForwardVisit = Callable[[int, Tensor, Tensor], None]
"""Called with a step and its keys and values ``[k, b, g, d]``."""
BackwardVisit = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]
"""The same, and buffers of zeros to which the gradients of keys and values are added."""


@dataclasses.dataclass(frozen=True)
class ContextExchange:
    """The groups of one rank, and what goes over them.

    Attributes:
        heads_group: neighbours that trade sequence for heads, or None.
        keys_group: ranks over which keys and values are gathered or sent round, or None.
        ring: send round instead of gathering.
    """

    heads_group: ProcessGroup | None = None
    keys_group: ProcessGroup | None = None
    ring: bool = False

    def query_runs(self, length: int) -> tuple[Run, ...]:
        """Rows of a sequence of ``length`` whose queries this rank attends with, after `to_heads`."""
        return zigzag_runs(length, *_place(self.keys_group))

    def key_runs(self, length: int) -> list[tuple[Run, ...]]:
        """Rows whose keys are in the buffer of each step."""
        size, rank = _place(self.keys_group)
        if size > 1 and not self.ring:
            return [gathered_runs(length, size)]
        return [zigzag_runs(length, size, (rank - step) % size) for step in range(size)]

    def to_heads(self, states: Tensor) -> Tensor:
        """``[s/cp, b, n, d] -> [s/cp * u, b, n/u, d]``, ``u`` ranks in the heads group; differentiable.

        Parallel: all-to-all over the heads group, forward and backward.
        """
        return states if self.heads_group is None else _Trade.apply(states, self.heads_group, True)

    def to_sequence(self, states: Tensor) -> Tensor:
        """Inverse of `to_heads`.

        Parallel: all-to-all over the heads group, forward and backward.
        """
        return states if self.heads_group is None else _Trade.apply(states, self.heads_group, False)

    def forward(self, key: Tensor, value: Tensor, visit: ForwardVisit) -> None:
        """Show every step's keys and values.

        Parallel: all-gather, or sends to the next and from the last rank, over the keys group.
        """
        if self.keys_group is None:
            visit(0, key, value)
        elif not self.ring:
            visit(0, *_gather(torch.stack([key, value], 1), self.keys_group).unbind(1))
        else:
            ring, held = _Ring(self.keys_group), torch.stack([key, value], 1)
            for step in range(ring.size):
                arriving = ring.send(held, tag=0) if step + 1 < ring.size else None
                visit(step, *held.unbind(1))
                held = arriving.wait() if arriving else held

    def backward(self, key: Tensor, value: Tensor, dtype: torch.dtype, visit: BackwardVisit) -> tuple[Tensor, Tensor]:
        """Show every step's keys and values again and sum the gradients of this rank's own over all ranks.

        Args:
            key: this rank's, ``[s, b, g, d]``.
            value: the same.
            dtype: of the gradients' buffers, and of what is sent of them.
            visit: adds to the gradients.

        Parallel: as `forward`, and reduce-scatter, or a second ring on which gradients follow their keys home.
        """
        if self.keys_group is None:
            d_key, d_value = torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)
            visit(0, key, value, d_key, d_value)
            return d_key, d_value
        both = torch.stack([key, value], 1)
        if not self.ring:
            whole = _gather(both, self.keys_group)
            d_whole = torch.zeros_like(whole, dtype=dtype)
            visit(0, *whole.unbind(1), *d_whole.unbind(1))
            del whole
            d_key, d_value = _reduce_scatter(d_whole, self.keys_group).unbind(1)
            return d_key, d_value
        return self._backward_ring(both, dtype, visit)

    def _backward_ring(self, held: Tensor, dtype: torch.dtype, visit: BackwardVisit) -> tuple[Tensor, Tensor]:
        assert self.keys_group is not None
        ring, partial = _Ring(self.keys_group), None
        for step in range(ring.size):
            arriving = ring.send(held, tag=0) if step + 1 < ring.size else None
            gradient = torch.zeros_like(held, dtype=dtype)
            visit(step, *held.unbind(1), *gradient.unbind(1))
            if partial:
                gradient += partial.wait()  # what the ranks before have added to the gradient of the same keys
            partial = ring.send(gradient, tag=1)  # after the last step, to the rank whose keys they are
            held = arriving.wait() if arriving else held
        assert partial is not None
        d_key, d_value = partial.wait().unbind(1)
        return d_key, d_value


def _place(group: ProcessGroup | None) -> tuple[int, int]:
    return (1, 0) if group is None else (group.size(), group.rank())


def gathered_runs(length: int, size: int) -> tuple[Run, ...]:
    """Where the rows of a sequence lie in the buffer that `_gather` fills.

    The first half is in order. The second half is in the order of the ranks, which is the reverse order of its chunks: what
    a chunk sees of it still lies side by side.
    """
    half, chunk = length // 2, length // (2 * size)
    mirrored = tuple(Run(length - (rank + 1) * chunk, length - rank * chunk, half + rank * chunk) for rank in range(size))
    return (Run(0, half, 0), *mirrored)


def _gather(shard: Tensor, group: ProcessGroup) -> Tensor:
    """``[s/cp, ..] -> [s, ..]``, placed as `gathered_runs` tells: the early chunks of all ranks, then their late ones."""
    rows = shard.size(0)
    whole = shard.new_empty((rows * group.size(), *shard.shape[1:]))
    for part, of in zip(shard.split(rows // 2), whole.split(whole.size(0) // 2), strict=True):
        dist.all_gather_into_tensor(of, part, group=group)
    return whole


def _reduce_scatter(whole: Tensor, group: ProcessGroup) -> Tensor:
    """Transpose of `_gather`: sums over ranks."""
    shard = whole.new_empty((whole.size(0) // group.size(), *whole.shape[1:]))
    for part, of in zip(shard.split(shard.size(0) // 2), whole.split(whole.size(0) // 2), strict=True):
        dist.reduce_scatter_tensor(part, of, group=group)
    return shard


class _Transfer:
    """A tensor on its way in, another on its way out."""

    def __init__(self, sent: Tensor, received: Tensor, works: list[Any]) -> None:
        self._sent, self._received, self._works = sent, received, works  # what is sent must live until it has left

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._received


class _Ring:
    """Sends to the next rank of a group, receives from the one before."""

    def __init__(self, group: ProcessGroup) -> None:
        self.size, rank = group.size(), group.rank()
        self._group = group
        self._next = dist.get_global_rank(group, (rank + 1) % self.size)
        self._previous = dist.get_global_rank(group, (rank - 1) % self.size)

    def send(self, tensor: Tensor, tag: int) -> _Transfer:
        """Begin to pass on ``tensor`` and to receive its like. Transfers under way at one time have tags of their own."""
        received = torch.empty_like(tensor)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, self._next, self._group, tag),
                dist.P2POp(dist.irecv, received, self._previous, self._group, tag),
            ]
        )
        return _Transfer(tensor, received, works)


def _trade_for_heads(states: Tensor, group: ProcessGroup) -> Tensor:
    parts = states.unflatten(2, (group.size(), -1)).movedim(2, 0).contiguous()  # [u, s, b, n/u, d]
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return zigzag_join(received)


def _trade_for_sequence(states: Tensor, group: ProcessGroup) -> Tensor:
    parts = zigzag_split(states, group.size())  # [u, s, b, n/u, d]
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received.movedim(0, 2).flatten(2, 3)


class _Trade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, group: ProcessGroup, for_heads: bool) -> Tensor:
        ctx.group, ctx.for_heads = group, for_heads
        return (_trade_for_heads if for_heads else _trade_for_sequence)(states, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (_trade_for_sequence if ctx.for_heads else _trade_for_heads)(grads[0], ctx.group), None, None
