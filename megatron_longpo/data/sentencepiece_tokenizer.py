"""A bare sentencepiece model with a Jinja2 chat template as a chat tokenizer."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.cuts import Marker, cuts_before_markers, cuts_before_spaces, words_begin_with_spaces
from megatron_longpo.data.encoding import OffsetEncoding
from megatron_longpo.data.tokenizer import Message, TemplateErrors, fingerprint, first_line, uses_date
from megatron_longpo.utils.errors import UserError


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
            raise UserError(f"{path}: not a readable sentencepiece model ({first_line(error)})") from None
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
        self._markers = [Marker(text) for text in self._control]
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.vocab_size = model.get_piece_size()
        self.eos_token_id = model.eos_id() if model.eos_id() >= 0 else None
        self.pad_token_id = model.pad_id() if model.pad_id() >= 0 else None
        self.control_ids = frozenset(self._control.values())
        self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        self.template_fingerprint = fingerprint([self._template, self._arguments])
        self.template_uses_date = uses_date(self._template, self._arguments)

    def render(self, messages: Sequence[Message]) -> str:
        """See `ChatTokenizer`; the template runs in the Jinja2 environment of transformers' ``apply_chat_template``."""
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [dict(message) for message in messages]
        with TemplateErrors():
            rendered, _ = render_jinja_template([conversation], chat_template=self._template, **self._arguments)
        return str(rendered[0])

    def encode(self, text: str) -> OffsetEncoding:
        """See `ChatTokenizer`."""
        ids: list[int] = []
        offsets = [np.empty((0, 2), np.int64)]
        for position, stretch, control in self._stretches(text):
            if control is None:
                encoded = self._model.encode(stretch, return_type="offset_mapping")
                ids += encoded["ids"]
                offsets.append(position + _whole_characters(encoded["offsets"]))
            else:
                ids.append(control)
                offsets.append(np.array([[position, position + len(stretch)]]))
        table = np.concatenate(offsets)
        return OffsetEncoding(np.array(ids, dtype=np.int32), table[:, 0], table[:, 1])

    def encode_ids(self, text: str) -> np.ndarray:
        """See `ChatTokenizer`."""
        ids: list[int] = []
        for _, stretch, control in self._stretches(text):
            ids += self._model.encode(stretch) if control is None else [control]
        return np.array(ids, dtype=np.int32)

    def _stretches(self, text: str) -> Iterator[tuple[int, str, int | None]]:
        """Control symbols, with their ids, and the text between them, without what stands for a dummy prefix; with places."""
        position = 0
        for stretch in self._cut.split(text) if self._control else [text]:
            control = self._control.get(stretch)
            lead = int(control is None and self._has_dummy_prefix and stretch != " " and stretch.startswith(" "))
            if stretch:
                yield position + lead, stretch[lead:], control
            position += len(stretch)

    def find_cuts(self, between: str) -> Iterator[int]:
        """See `ChatTokenizer`."""
        yield from cuts_before_markers(between, self._markers)
        if self._words_begin_with_spaces:
            yield from cuts_before_spaces(between)

    @functools.cached_property
    def _words_begin_with_spaces(self) -> bool:
        """Whether the model merges (its scores are ranks, a unigram model's log-probs), and no merge crosses a word's start."""
        pieces = range(self._model.get_piece_size())
        merges = all(self._model.get_score(id_).is_integer() for id_ in pieces)
        return merges and words_begin_with_spaces(map(self._model.id_to_piece, pieces))

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


def _whole_characters(offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Offsets of one stretch's pieces, int64 ``[s, 2]``, in which every piece reaches to the end of a character.

    Sentencepiece gives a character that is spelt in bytes to the last of them alone, and nothing to the dummy prefix: a piece
    that covers no character belongs to what follows it.
    """
    table = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    if len(table):
        ends = np.where(table[:, 1] > table[:, 0], table[:, 1], np.iinfo(np.int64).max)
        ends[-1] = table[-1, 1]
        table[:, 1] = np.minimum.accumulate(ends[::-1])[::-1]
    return table
