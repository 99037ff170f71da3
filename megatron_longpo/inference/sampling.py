"""How the tokens of an answer are drawn."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are drawn.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: draw among the most probable tokens that together have this probability.
        max_new_tokens: most tokens of an answer.
    """

    temperature: float
    top_p: float = 1.0
    max_new_tokens: int = 1024
