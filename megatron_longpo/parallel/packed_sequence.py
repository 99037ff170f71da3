"""The layout of a packed sequence: chains of rows, and what a model needs to read one rank's part of it.

Token ``i`` of a chain sees tokens ``0..i`` of its own chain and the first ``attach`` tokens of its parent chain, and through
the parent what
those see. A preference pair is two chains: ``[prefix | chosen tail]``, and the rejected tail attached to the prefix. Pairs packed
together are further chains without a parent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Chain:
    """A stretch of the packed sequence that is causal in itself.

    Attributes:
        start: first row of the packed sequence.
        length: number of rows.
        parent: index of the chain it continues, or None.
        attach: number of leading tokens of the parent that it sees.
    """

    start: int
    length: int
    parent: int | None = None
    attach: int = 0

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.start + self.length


def ancestors(chains: Sequence[Chain], index: int) -> list[tuple[int, int]]:
    """Ranges of rows that every token of a chain sees outside the chain itself, earliest first."""
    ranges = []
    chain = chains[index]
    while chain.parent is not None:
        parent = chains[chain.parent]
        if chain.attach:
            ranges.append((parent.start, parent.start + chain.attach))
        chain = parent
    return ranges[::-1]


def chain_positions(chains: Sequence[Chain]) -> list[range]:
    """Position ids of each chain's rows: a chain goes on counting where it is attached."""
    positions: list[range] = []
    for chain in chains:
        first = 0 if chain.parent is None else positions[chain.parent].start + chain.attach
        positions.append(range(first, first + chain.length))
    return positions


@dataclasses.dataclass(frozen=True)
class TeacherRows:
    """What another model would say where this one is asked: its last hidden states, and the weight that makes logits of them.

    Attributes:
        rows: ``[s/cp]`` int64, which of the states belongs to this rank's row; -1 where none does.
        states: ``[a, g]``.
        weight: this tensor-parallel rank's rows of its output weight, ``[v/tp, g]``.
    """

    rows: Tensor
    states: Tensor
    weight: Tensor


@dataclasses.dataclass(frozen=True)
class PackedInput:
    """One rank's part of a packed sequence, as the model reads it.

    Attributes:
        tokens: ``[s/cp]`` int64.
        labels: ``[s/cp]`` int64, already shifted on the whole sequence; -100 where there is no target.
        position_ids: ``[s/cp]`` int64.
        chains: the *whole* packed sequence's chains.
        length: the whole packed length ``s``.
        known_weights: ``[s/cp]`` fp64, see `linear_log_probs`; None where nothing is trained.
        teacher: what the model is compared with in some rows; None where it is not, and on all pipeline stages but the last.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    chains: tuple[Chain, ...]
    length: int
    known_weights: Tensor | None = None
    teacher: TeacherRows | None = None
