"""Random order that depends on nothing but its key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LARGEST_TABLE = 1 << 16
"""Entries above which an order is computed entry by entry instead of being held."""
_ROUNDS = 6
_WORD = (1 << 64) - 1


def shuffled(size: int, key: Sequence[int]) -> Shuffle | np.ndarray:
    """A random order of ``range(size)`` that takes little memory whatever the size.

    Args:
        size: number of entries.
        key: non-negative integers; each key has an order of its own.
    """
    return permutation(size, key) if size <= LARGEST_TABLE else Shuffle(size, key)


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


class Shuffle:
    """A random permutation of ``range(size)`` that holds nothing: each entry is computed when it is asked for.

    It is a cipher: a Feistel network permutes all words of an even number of bits, whatever its round function. A result that is
    not below ``size`` is enciphered again until it is; fewer than four times on average.
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        """Take the number of entries, and the key."""
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [int(word) for word in np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint64)]

    def __len__(self) -> int:
        """Number of entries."""
        return self._size

    def __getitem__(self, index: int) -> int:
        """Entry ``index``."""
        if not 0 <= index < self._size:
            raise IndexError(f"entry {index} of {self._size}")
        value = self._encipher(index)
        while value >= self._size:
            value = self._encipher(value)
        return value

    def _encipher(self, value: int) -> int:
        mask = (1 << self._half) - 1
        left, right = value >> self._half, value & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key & _WORD) & mask)
        return left << self._half | right


def _mixed(word: int) -> int:
    """The finaliser of SplitMix64: every bit of a 64-bit word depends on every other."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31
