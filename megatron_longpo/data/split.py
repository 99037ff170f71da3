"""Which documents train and which validate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_longpo.data.shuffle import shuffled
from megatron_longpo.utils.errors import UserError

SPLIT_STREAM = 0
"""First word of the random key, so that the split and the shuffles of one seed are unrelated."""


def parse_split(text: str) -> tuple[float, float]:
    """Read ``"99,1"``: the train and validation shares.

    Raises:
        UserError: it is not two non-negative numbers, the first positive.
    """
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 2 or not all(np.isfinite(shares)) or shares[0] <= 0 or shares[1] < 0:
        raise UserError(f"--split {text}: give the train and validation shares, such as 99,1")
    return shares[0], shares[1]


class Remaining(Sequence[int]):
    """The indices below ``size`` that are not in an ascending array, ascending; it holds that array alone."""

    def __init__(self, size: int, taken: np.ndarray) -> None:
        """Take the number of indices, and those that are left out."""
        self._length = size - len(taken)
        self._before = taken - np.arange(len(taken))  # remaining indices before each one that is left out

    def __len__(self) -> int:
        """Number of indices."""
        return self._length

    def __getitem__(self, position: int) -> int:  # type: ignore[override]
        """Index at a position."""
        if not 0 <= position < self._length:
            raise IndexError(f"position {position} of {self._length}")
        return position + int(np.searchsorted(self._before, position, side="right"))


def split_indices(num_documents: int, split: str, seed: int) -> tuple[Remaining, np.ndarray]:
    """Divide documents into train and validation by seed.

    A validation share above zero gets at least one of two or more documents.

    Args:
        num_documents: documents of one dataset.
        split: as in `parse_split`.
        seed: of the run.

    Returns:
        Train and validation indices, each ascending; disjoint, together all documents. Only the latter take memory.
    """
    train_share, validation_share = parse_split(split)
    num_validation = round(num_documents * validation_share / (train_share + validation_share))
    if validation_share > 0 and num_documents > 1:
        num_validation = min(max(num_validation, 1), num_documents - 1)
    order = shuffled(num_documents, (SPLIT_STREAM, seed))
    validation = np.sort(np.fromiter((order[place] for place in range(num_validation)), dtype=np.int64, count=num_validation))
    return Remaining(num_documents, validation), validation
