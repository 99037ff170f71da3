"""Random choices that depend on what is chosen, and not on what was chosen before."""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *parts: str | int) -> int:
    """Hash a run's seed and the name of one decision to a seed of its own, in ``[0, 2**63)``.

    Each decision (a document's window, a chunk's question, an answer's tokens) then comes out the same in any order of work, and
    after any interruption.
    """
    name = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def derive_random(seed: int, *parts: str | int) -> random.Random:
    """Make a generator for one decision; see `derive_seed`."""
    return random.Random(derive_seed(seed, *parts))
