"""Counting and cutting by a model's tokenizer."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from megatron_longpo.generation.engine import ChatTokenizer

DECIDING = (".json", ".jinja", ".model", ".txt")
"""Files of a Hugging Face folder that say how text becomes tokens."""


class PromptTokens:
    """Counts the tokens of prompts."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:  # noqa: D107
        self.tokenizer = tokenizer
        self._last: tuple[str, list[int]] = "", []

    def count(self, message: str) -> int:
        """Count the tokens of a conversation that has this user message, template included."""
        return len(self.tokenizer.encode_message(message))

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


def fingerprint_tokenizer(folder: Path) -> str:
    """Hash the files of a folder that decide how text becomes tokens."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in DECIDING and file.is_file() and not file.name.endswith(".index.json"):
            digest.update(f"{file.name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
