"""A Hugging Face tokenizer folder as a chat tokenizer."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from megatron_longpo.data.cuts import (
    SPACE,
    Marker,
    cuts_at_boundaries,
    cuts_before_markers,
    cuts_before_spaces,
    words_begin_with_spaces,
)
from megatron_longpo.data.encoding import NativeEncoding
from megatron_longpo.data.tokenizer import Message, TemplateErrors, fingerprint, first_line, uses_date
from megatron_longpo.utils.errors import UserError

PROBE = "A word's end,\n\n  7 km² of <s>文</s> 😀\t"


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
            raise UserError(f"{path}: not a readable Hugging Face tokenizer folder ({first_line(error)})") from error
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
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        if tokenizer(PROBE, add_special_tokens=False)["input_ids"] != self.encode_ids(PROBE).tolist():
            raise UserError(f"{path}: its Python code gives other ids than its tokenizer.json; save one that gives the same")
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.eos_token_id = tokenizer.eos_token_id
        self.pad_token_id = tokenizer.pad_token_id
        added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control_ids = frozenset(added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self.template_fingerprint = fingerprint([template, self._arguments, special])
        self.template_uses_date = uses_date(template, self._arguments)

    def render(self, messages: Sequence[Message]) -> str:
        """See `ChatTokenizer`."""
        with TemplateErrors():
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], chat_template=self._template, tokenize=False, **self._arguments
                )
            )

    def encode(self, text: str) -> NativeEncoding:
        """See `ChatTokenizer`."""
        return NativeEncoding(self._backend.encode(text, add_special_tokens=False))

    def encode_ids(self, text: str) -> np.ndarray:
        """See `ChatTokenizer`."""
        return np.array(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids, dtype=np.int32)

    def find_cuts(self, between: str) -> Iterator[int]:
        """See `ChatTokenizer`."""
        yield from cuts_before_markers(between, self._markers)
        if self._words_begin_with_spaces:
            yield from cuts_before_spaces(between)
        elif self._backend.pre_tokenizer is not None and between.isascii():
            yield from cuts_at_boundaries(between, self._word_starts)

    def _word_starts(self, text: str) -> set[int]:
        return {start for _, (start, _) in self._backend.pre_tokenizer.pre_tokenize_str(text)}

    def decode(self, ids: np.ndarray) -> str:
        """See `ChatTokenizer`."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `ChatTokenizer`."""
        state = self._state()
        for name in ("truncation", "padding", "post_processor"):  # none of them touches a plain encoding's ids
            state.pop(name, None)
        return fingerprint(state)

    @functools.cached_property
    def _markers(self) -> list[Marker]:
        """Tokens that are looked for in the text as it is; the others are looked for in the stretches between these."""
        added = self._backend.get_added_tokens_decoder().values()
        return [Marker(token.content, token.lstrip or token.single_word) for token in added if not token.normalized]

    @functools.cached_property
    def _words_begin_with_spaces(self) -> bool:
        """Whether this is sentencepiece's way of merging, over text in which spaces are marks that only begin tokens."""
        state = self._state()
        model, splits = state["model"], state["pre_tokenizer"] or {"type": "Metaspace", "replacement": SPACE}
        return (
            model["type"] == "BPE"
            and not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
            and (splits["type"], splits.get("replacement")) == ("Metaspace", SPACE)
            and _only_marks_spaces(state["normalizer"])
            and words_begin_with_spaces([*model["vocab"], *(token["content"] for token in state["added_tokens"])])
        )

    def _state(self) -> dict[str, Any]:
        return dict(json.loads(self._backend.to_str()))


def _only_marks_spaces(normalizer: dict[str, Any] | None) -> bool:
    """Whether a normaliser, as tokenizer.json has it, does no more than write sentencepiece's marks for spaces."""
    match normalizer:
        case None | {"type": "Prepend", "prepend": "\u2581"}:
            return True
        case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
            return True
        case {"type": "Sequence", "normalizers": list(parts)}:
            return all(map(_only_marks_spaces, parts))
    return False
