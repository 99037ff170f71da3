"""The length of a pair, in the numbers that memory and FLOPs depend on."""

from __future__ import annotations

import dataclasses


def triangle(length: int) -> int:
    """Score pairs of a causal square: ``1 + 2 + .. + length``."""
    return length * (length + 1) // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairShape:
    """A preference pair as a packed sequence.

    Attributes:
        length: tokens of the longer side, answers included.
        tail: tokens of a side after the shared prefix: the answers, and the later instructions between them.
        prefix_sharing: whether the prefix is encoded once.
        packed: rows and (query, key) pairs of the objective's chats, where they were counted; else those of the two long ones.
    """

    length: int
    tail: int
    prefix_sharing: bool = True
    packed: tuple[int, int] | None = None

    @property
    def prefix(self) -> int:
        """Tokens that both sides start with."""
        return self.length - self.tail

    @property
    def rows(self) -> int:
        """Rows of the packed sequence, before padding."""
        if self.packed is not None:
            return self.packed[0]
        # the rejected tail starts with a copy of the last prefix token
        return self.length + self.tail + 1 if self.prefix_sharing else 2 * self.length

    @property
    def score_pairs(self) -> int:
        """(query, key) pairs that attention computes."""
        if self.packed is not None:
            return self.packed[1]
        if not self.prefix_sharing:
            return 2 * triangle(self.length)
        return triangle(self.length) + (self.tail + 1) * (self.prefix - 1) + triangle(self.tail + 1)
