"""Counting and cutting by a model's tokenizer."""

from __future__ import annotations

import re

from megatron_longpo.inference.engine import PromptTokenizer


class PromptTokens:
    """Counts the tokens of prompts."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:  # noqa: D107
        self.tokenizer = tokenizer
        self._last: tuple[str, list[int]] = "", []

    def count(self, message: str) -> int:
        """Count the tokens of a conversation that has this user message, template included."""
        [tokens] = self.tokenizer.count_tokens([self.tokenizer.render_message(message)])
        return tokens

    def starts(self, text: str) -> list[int]:
        """Return where the tokens of a text start, in characters; of its words where the tokenizer does not tell."""
        last, starts = self._last
        if last == text:
            return starts
        library = self.tokenizer.tokenizer
        if library.is_fast:
            starts = [start for start, _ in library.backend_tokenizer.encode(text, add_special_tokens=False).offsets]
        else:
            starts = [match.start() for match in re.finditer(r"\S+", text)]
        self._last = text, starts
        return starts
