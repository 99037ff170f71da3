"""How many rows of logits exist at once."""

from __future__ import annotations

LIMIT = 2**29
"""Bytes of a chunk of fp32 logits: with a vocabulary of 150,000 words a thousand rows would be the largest tensor of a step."""


def rows_at_once(chunk_size: int, words: int) -> int:
    """Rows of a chunk.

    Args:
        chunk_size: at most so many.
        words: of the vocabulary, on this rank.
    """
    return max(1, min(chunk_size, LIMIT // (4 * max(words, 1))))
