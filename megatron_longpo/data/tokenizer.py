"""Chat tokenizers: a Hugging Face folder, or a bare sentencepiece model with a Jinja2 chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_longpo.data.encoding import Encoding
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.json_flags import parse_json_object

Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``"""


class ChatTokenizer(Protocol):
    """What preprocessing needs of a tokenizer.

    Attributes:
        vocab_size: one more than the largest id.
        eos_token_id: the end-of-sequence id, or None.
        pad_token_id: the padding id, or None.
        control_ids: ids that only a template should produce (``<s>``, ``<|im_end|>``, ...); never the unknown token.
        template_fingerprint: SHA-256 of all that decides how a chat becomes text.
        template_uses_date: the template prints today's date, so the text depends on the day.
    """

    vocab_size: int
    eos_token_id: int | None
    pad_token_id: int | None
    control_ids: frozenset[int]
    template_fingerprint: str
    template_uses_date: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides how text becomes ids."""

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as text, without a generation prompt."""

    def encode(self, text: str) -> Encoding:
        """The ids of the whole text, in which control tokens are recognised; nothing is added."""

    def encode_ids(self, text: str) -> np.ndarray:
        """The ids alone, int32 ``[s]``: those of `encode`, in less time."""

    def find_cuts(self, between: str) -> Iterable[int]:
        """Where a text may be cut in what a template writes between two contents, best places first.

        The ids of the text are those of its start and those of the rest, each encoded alone, whatever the contents. A rest that
        begins with a space is encoded as what follows a word.
        """

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, control tokens included."""


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """What it takes to load a tokenizer, small enough to send to a worker.

    Attributes:
        path: a Hugging Face folder, or a sentencepiece model file.
        chat_template: text of a Jinja2 chat template; needed for a sentencepiece model, else the folder's own is the default.
        template_arguments: further variables of the template, a JSON object (``{"enable_thinking": false}``).
        trust_remote_code: run the folder's own Python code.
    """

    path: str
    chat_template: str | None = None
    template_arguments: str = "{}"
    trust_remote_code: bool = False

    def load(self) -> ChatTokenizer:
        """Load it.

        Raises:
            UserError: there is nothing at the path, it cannot be read, or there is no chat template.
        """
        arguments = parse_json_object("--chat-template-arguments", self.template_arguments, '{"enable_thinking": false}')
        from megatron_longpo.data.huggingface_tokenizer import HuggingFaceTokenizer
        from megatron_longpo.data.sentencepiece_tokenizer import SentencePieceTokenizer

        if Path(self.path).is_dir():
            return HuggingFaceTokenizer(self.path, self.chat_template, arguments, self.trust_remote_code)
        if Path(self.path).is_file():
            return SentencePieceTokenizer(self.path, self.chat_template, arguments)
        raise UserError(
            f"--tokenizer-model {self.path}: no such folder or file; give a local Hugging Face folder or a .model file"
        )


class TemplateErrors:
    """Turns the errors of a chat template into one line for the user."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Raise a `UserError` in place of an error of the template."""
        import jinja2

        if isinstance(error, (jinja2.TemplateError, TypeError)):
            raise UserError(f"the chat template cannot render this chat: {first_line(error)}") from error


def read_template(path: str | None) -> str | None:
    """The text of ``--chat-template``.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {path}: cannot be read ({error})") from None


def uses_date(template: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a template prints today's date, which no argument fixes."""
    return "strftime_now" in template and "date_string" not in arguments


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
