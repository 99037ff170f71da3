"""Zigzag sharding of a sequence over the context-parallel group: index arithmetic only, no communication.

The packed sequence is cut into ``2 * cp`` equal chunks and rank ``r`` holds chunks ``r`` and ``2 * cp - 1 - r``. Causal
attention then costs every rank the same: one early and one late chunk.
"""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Run:
    """A stretch of the whole sequence and where it lies in a local buffer.

    Attributes:
        start: first position in the whole sequence.
        end: one past the last.
        local_start: index of ``start`` in the buffer that holds the run.
    """

    start: int
    end: int
    local_start: int


def sequence_multiple(cp_size: int, tp_size: int = 1, *, sequence_parallel: bool = False) -> int:
    """The number that a packed length must be a multiple of: two chunks a context rank, and equal shards in a tensor group."""
    shards = tp_size if sequence_parallel else 1
    return 2 * cp_size * shards if cp_size > 1 else shards


def zigzag_runs(length: int, cp_size: int, cp_rank: int) -> tuple[Run, ...]:
    """The runs of a sequence of ``length`` tokens that a context-parallel rank holds, in the order it holds them.

    Raises:
        ValueError: if ``length`` does not divide into ``2 * cp_size`` chunks.
    """
    if cp_size == 1:
        return (Run(0, length, 0),)
    chunk, rest = divmod(length, 2 * cp_size)
    if rest:
        raise ValueError(f"a sequence of {length} tokens does not divide into 2 * cp = {2 * cp_size} chunks")
    mirror = 2 * cp_size - 1 - cp_rank
    return (Run(cp_rank * chunk, (cp_rank + 1) * chunk, 0), Run(mirror * chunk, (mirror + 1) * chunk, chunk))


def zigzag_slice(tensor: torch.Tensor, cp_size: int, cp_rank: int, dim: int = 0) -> torch.Tensor:
    """This rank's part of a whole tensor: ``[.., s, ..] -> [.., s/cp, ..]``."""
    if cp_size == 1:
        return tensor
    runs = zigzag_runs(tensor.size(dim), cp_size, cp_rank)
    return torch.cat([tensor.narrow(dim, run.start, run.end - run.start) for run in runs], dim)


def zigzag_join(shards: torch.Tensor) -> torch.Tensor:
    """Put gathered shards back into sequence order: ``[cp, s/cp, ..] -> [s, ..]``."""
    cp_size = shards.size(0)
    if cp_size == 1:
        return shards[0]
    early, late = shards.unflatten(1, (2, -1)).unbind(1)  # [cp, s/2cp, ..] each
    return torch.cat([*early, *reversed(late.unbind())])  # one copy: flipping or flattening first would make another


def zigzag_split(whole: torch.Tensor, cp_size: int) -> torch.Tensor:
    """Inverse of `zigzag_join`: ``[s, ..] -> [cp, s/cp, ..]``."""
    if cp_size == 1:
        return whole.unsqueeze(0)
    chunks = whole.chunk(2 * cp_size)
    shards = torch.cat([chunks[place] for rank in range(cp_size) for place in (rank, 2 * cp_size - 1 - rank)])  # one copy
    return shards.unflatten(0, (cp_size, -1))
