"""Random order that depends on nothing but its key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def permutation(size: int, key: Sequence[int]) -> np.ndarray:
    """A random permutation of ``range(size)``, int64.

    It sorts raw words of a bit generator: NumPy keeps those streams unchanged for good, but may change how
    ``Generator.permutation`` uses them, and a resumed run must see the same order under another version.

    Args:
        size: number of entries.
        key: non-negative integers; each key has an order of its own.
    """
    words = np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(size)
    return np.argsort(words, kind="stable")
