"""How a user message is put together, in generation, evaluation and training alike."""

from __future__ import annotations


def join_message(*parts: str) -> str:
    """Join the parts of a message, such as a context and a question about it, by one blank line. Empty ones are left out."""
    return "\n\n".join(part for part in parts if part)
