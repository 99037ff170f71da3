"""What generation needs of a model: a tokenizer that counts, and an engine that answers user messages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without special tokens and without white space around it.
        finish_reason: ``"stop"`` if the model ended it, ``"length"`` if the limit did, ``"failed"`` if there is none: the server
            refused the request, or gave no usable answer however often it was asked.
        num_tokens: tokens generated, the end-of-turn token included.
        error: why it failed.
    """

    text: str
    finish_reason: Literal["stop", "length", "failed"]
    num_tokens: int
    error: str = ""


class Engine(Protocol):
    """Answers user messages, each the only one of its conversation.

    Attributes:
        group_size: documents that should be worked on as one, their short messages in one call.
        concurrency: such groups at a time.
    """

    @property
    def group_size(self) -> int: ...  # noqa: D102

    @property
    def concurrency(self) -> int: ...  # noqa: D102

    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[Mapping[int, Completion]]:
        """Answer each message, drawing its tokens from its own seed.

        The messages of one call may start alike (a document, and a question each); an engine may read such a start once.

        Args:
            messages: all of them.
            sampling: how answers are drawn.
            seeds: one a message.
            done: places of messages whose answers are known. What the others get does not depend on which these are.

        Yields:
            Answers by place as they come. Those that depend on each other's company (rows of a batch) come together.

        Raises:
            UserError: no more can be had now; every answer that was given has been yielded.
        """
        ...

    def score(self, message: str, answer: str) -> float | None:
        """Sum the log-probs of an answer and the token that ends it, in nats, after a message; None if the request fails.

        Raises:
            UserError: the engine cannot.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what makes this engine's answers what they are, as JSON values; it goes into each record."""
        ...


class PromptTokenizer:
    """A Hugging Face tokenizer with its chat template.

    The ids of a conversation are those of its rendered text, encoded once without added special tokens: the template has
    written them already.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: D107
        self.tokenizer = tokenizer
        if tokenizer.is_fast:  # a folder may have stored them
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
        fast = tokenizer.is_fast
        state = json.loads(tokenizer.backend_tokenizer.to_str()) if fast else sorted(tokenizer.get_vocab().items())
        described = json.dumps([state, tokenizer.chat_template, str(tokenizer.special_tokens_map)], sort_keys=True)
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        """SHA-256 of all that decides how a conversation becomes tokens."""
        self._lock = threading.Lock()  # the library's tokenizers lend their state to one thread at a time

    @classmethod
    def load(cls, path: Path) -> PromptTokenizer:
        """Read a tokenizer from a Hugging Face folder.

        Raises:
            UserError: there is none, or it has no chat template.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # the library raises whatever its parsers raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: no tokenizer could be read ({reason}); give a Hugging Face folder") from None
        if not tokenizer.chat_template:
            raise UserError(f"{path}: the tokenizer has no chat template; add chat_template.jinja to the folder")
        return cls(tokenizer)

    def encode_message(self, message: str) -> list[int]:
        """Return the ids of `render_message`."""
        return self.encode(self.render_message(message))

    def render_message(self, message: str) -> str:
        """Return the text of a conversation of one user message, up to where the answer starts."""
        conversation = [{"role": "user", "content": message}]
        return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))

    def end_answer(self, answer: str) -> str:
        """Return the text of an answer as a model writes it after its prompt: with the token that ends a turn."""
        return answer + str(self.tokenizer.eos_token)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without added special tokens."""
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, without special tokens and white space around it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text alone."""
        if not texts:
            return []
        if self.tokenizer.is_fast:  # no lists of ids are made, and threads do not wait for each other
            encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [len(encoding) for encoding in encodings]
        with self._lock:
            encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def find_special_token(self, text: str) -> str | None:
        """Return a special token that occurs in a text as words, where a template would turn it into a real one."""
        added = self.tokenizer.added_tokens_decoder.values()
        return next((token.content for token in added if token.special and token.content in text), None)
