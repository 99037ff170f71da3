"""What generation needs of a model: a tokenizer that counts, and an engine that answers user messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from megatron_longpo.generation.settings import Sampling
from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without special tokens and without white space around it.
        finish_reason: ``"stop"`` if the model ended it, ``"length"`` if the limit did.
        num_tokens: tokens generated, the end-of-turn token included.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int


class Engine(Protocol):
    """Answers user messages, each the only one of its conversation."""

    def complete(self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Answer each message, drawing its tokens from its own seed.

        The messages of one call may start alike (a document, and a question each); an engine may read such a start once.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what makes this engine's answers what they are, as JSON values; it goes into each record."""
        ...


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template.

    The ids of a conversation are those of its rendered text, encoded once without added special tokens: the template has
    written them already.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: D107
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path) -> ChatTokenizer:
        """Read a tokenizer from a Hugging Face folder.

        Raises:
            UserError: there is none, or it has no chat template.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: no tokenizer could be read ({str(error).splitlines()[0]}); give a Hugging Face folder"
            ) from None
        if not tokenizer.chat_template:
            raise UserError(f"{path}: the tokenizer has no chat template; add chat_template.jinja to the folder")
        return cls(tokenizer)

    def encode_message(self, message: str) -> list[int]:
        """Return the ids of a conversation of one user message, up to where the answer starts."""
        conversation = [{"role": "user", "content": message}]
        rendered = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return self.encode(rendered)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without added special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, without special tokens and white space around it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text alone."""
        if not texts:
            return []
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def find_special_token(self, text: str) -> str | None:
        """Return a special token that occurs in a text as words, where a template would turn it into a real one."""
        added = self.tokenizer.added_tokens_decoder.values()
        return next((token.content for token in added if token.special and token.content in text), None)
