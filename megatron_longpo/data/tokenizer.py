"""Chat tokenizers: a Hugging Face folder, or a bare sentencepiece model with a Jinja2 chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_longpo.utils.errors import UserError

Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``"""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A text as tokens.

    Attributes:
        ids: int32 ``[s]``.
        starts: int64 ``[s]``: the first character of each token.
        ends: int64 ``[s]``: one past its last character. Tokens that share a character (the bytes of an emoji) all cover it.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class ChatTokenizer(Protocol):
    """What preprocessing needs of a tokenizer.

    Attributes:
        vocab_size: one more than the largest id.
        eos_token_id: the end-of-sequence id, or None.
        pad_token_id: the padding id, or None.
        control_ids: ids that only a template should produce (``<s>``, ``<|im_end|>``, ...); never the unknown token.
        fingerprint: SHA-256 of all that decides how text becomes ids.
        template_fingerprint: SHA-256 of all that decides how a chat becomes text.
        template_uses_date: the template prints today's date, so the text depends on the day.
    """

    vocab_size: int
    eos_token_id: int | None
    pad_token_id: int | None
    control_ids: frozenset[int]
    fingerprint: str
    template_fingerprint: str
    template_uses_date: bool

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as text, without a generation prompt."""

    def encode(self, text: str) -> Encoding:
        """The ids of the whole text, in which control tokens are recognised; nothing is added."""

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
        arguments = _parse_arguments(self.template_arguments)
        if Path(self.path).is_dir():
            return HuggingFaceTokenizer(self.path, self.chat_template, arguments, self.trust_remote_code)
        if Path(self.path).is_file():
            return SentencePieceTokenizer(self.path, self.chat_template, arguments)
        raise UserError(
            f"--tokenizer-model {self.path}: no such folder or file; give a local Hugging Face folder or a .model file"
        )


class HuggingFaceTokenizer:
    """A Hugging Face tokenizer folder; satisfies `ChatTokenizer`."""

    def __init__(
        self, path: str, chat_template: str | None, arguments: Mapping[str, Any], trust_remote_code: bool = False
    ) -> None:
        """Load it; see `TokenizerSpec`."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
        except Exception as error:  # the library raises whatever its parsers raise
            raise UserError(f"{path}: not a readable Hugging Face tokenizer folder ({_first_line(error)})") from error
        if not tokenizer.is_fast:
            raise UserError(
                f"{path}: this tokenizer gives no character offsets; save its fast form (tokenizer.json) in the folder"
            )
        template = chat_template or tokenizer.chat_template
        if not isinstance(template, str):
            raise UserError(f"{path}: the tokenizer has no (single) chat template; give one with --chat-template")
        tokenizer.model_max_length = int(1e30)  # else it warns of every long text
        self._tokenizer = tokenizer
        self._template = template
        self._arguments = dict(arguments)
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.eos_token_id = tokenizer.eos_token_id
        self.pad_token_id = tokenizer.pad_token_id
        added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control_ids = frozenset(added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("truncation", "padding", "post_processor"):  # none of them touches a plain encoding's ids
            state.pop(name, None)
        self.fingerprint = _sha256(state)
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self.template_fingerprint = _sha256([template, self._arguments, special])
        self.template_uses_date = _uses_date(template, self._arguments)

    def render(self, messages: Sequence[Message]) -> str:
        """See `ChatTokenizer`."""
        with _TemplateErrors():
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], chat_template=self._template, tokenize=False, **self._arguments
                )
            )

    def encode(self, text: str) -> Encoding:
        """See `ChatTokenizer`."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return Encoding(np.asarray(encoded["input_ids"], dtype=np.int32), offsets[:, 0], offsets[:, 1])

    def decode(self, ids: np.ndarray) -> str:
        """See `ChatTokenizer`."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class SentencePieceTokenizer:
    """A bare sentencepiece model with a chat template; satisfies `ChatTokenizer`.

    Sentencepiece itself never reads a control symbol from text. So the text is cut at them, and each stretch in between is
    encoded by sentencepiece, dummy prefix included (as the model's own library does with its turns). Where the template writes
    a space there (``[INST] question``), that space is the dummy prefix: templates with and without it give the same ids.
    """

    def __init__(self, path: str, chat_template: str | None, arguments: Mapping[str, Any]) -> None:
        """Load it; see `TokenizerSpec`."""
        import sentencepiece

        if chat_template is None:
            raise UserError(f"{path}: a sentencepiece model carries no chat template; give one with --chat-template")
        try:
            model = sentencepiece.SentencePieceProcessor(model_file=path)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a readable sentencepiece model ({_first_line(error)})") from None
        self._model = model
        self._template = chat_template
        names = {
            "bos_token": model.bos_id(),
            "eos_token": model.eos_id(),
            "unk_token": model.unk_id(),
            "pad_token": model.pad_id(),
        }
        special = {name: model.id_to_piece(id_) for name, id_ in names.items() if id_ >= 0}
        self._arguments: dict[str, Any] = {**special, **arguments}
        self._control = {model.id_to_piece(id_): id_ for id_ in range(model.get_piece_size()) if model.is_control(id_)}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._has_dummy_prefix = model.encode("a", return_type=str)[0].startswith("\u2581")
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.vocab_size = model.get_piece_size()
        self.eos_token_id = model.eos_id() if model.eos_id() >= 0 else None
        self.pad_token_id = model.pad_id() if model.pad_id() >= 0 else None
        self.control_ids = frozenset(self._control.values())
        self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        self.template_fingerprint = _sha256([self._template, self._arguments])
        self.template_uses_date = _uses_date(self._template, self._arguments)

    def render(self, messages: Sequence[Message]) -> str:
        """See `ChatTokenizer`; the template runs in the Jinja2 environment of transformers' ``apply_chat_template``."""
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [dict(message) for message in messages]
        with _TemplateErrors():
            rendered, _ = render_jinja_template([conversation], chat_template=self._template, **self._arguments)
        return str(rendered[0])

    def encode(self, text: str) -> Encoding:
        """See `ChatTokenizer`."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for stretch in self._cut.split(text) if self._control else [text]:
            if stretch in self._control:
                ids.append(self._control[stretch])
                offsets.append((position, position + len(stretch)))
            elif stretch:
                lead = int(self._has_dummy_prefix and stretch != " " and stretch.startswith(" "))
                encoded = self._model.encode(stretch[lead:], return_type="offset_mapping")
                ids.extend(encoded["ids"])
                offsets.extend(_whole_characters(encoded["offsets"], position + lead))
            position += len(stretch)
        table = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
        return Encoding(np.asarray(ids, dtype=np.int32), table[:, 0], table[:, 1])

    def decode(self, ids: np.ndarray) -> str:
        """See `ChatTokenizer`."""
        pieces: list[str] = []
        stretch: list[int] = []
        for id_ in [*ids.tolist(), None]:
            if id_ is not None and id_ not in self.control_ids:
                stretch.append(id_)
                continue
            if stretch:
                pieces.append(self._model.decode(stretch))
                stretch = []
            if id_ is not None:
                pieces.append(self._model.id_to_piece(id_))
        return "".join(pieces)


def _whole_characters(offsets: Sequence[tuple[int, int]], position: int) -> list[tuple[int, int]]:
    """Offsets of one stretch's pieces in the whole text, ``position`` being where the stretch begins.

    Sentencepiece gives a character that is spelt in bytes to the last of them alone, and nothing to the dummy prefix: a piece
    that covers no character belongs to what follows it.
    """
    following_end = offsets[-1][1] if offsets else 0
    shifted = []
    for start, end in reversed(offsets):
        if end > start:
            following_end = end
        shifted.append((position + start, position + following_end))
    return shifted[::-1]


class _TemplateErrors:
    """Turns the errors of a chat template into one line for the user."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        import jinja2

        if isinstance(error, (jinja2.TemplateError, TypeError)):
            raise UserError(f"the chat template cannot render this chat: {_first_line(error)}") from error


def read_template(path: str | None) -> str | None:
    """The text of ``--chat-template``.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {path}: cannot be read ({error})") from None


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--chat-template-arguments: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError("--chat-template-arguments: give a JSON object, such as '{\"enable_thinking\": false}'")
    return value


def _uses_date(template: str, arguments: Mapping[str, Any]) -> bool:
    return "strftime_now" in template and "date_string" not in arguments


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
