"""One record in text -> one preference pair in tokens, or the reason why not."""

from __future__ import annotations

import dataclasses
import enum
import unicodedata
from collections.abc import Sequence

import numpy as np

from megatron_longpo.data.chat_encoder import ChatEncoder
from megatron_longpo.data.encoding import Encoding
from megatron_longpo.data.pair import PreferencePair, Side, Span
from megatron_longpo.data.record import PreferenceRecord, Turn
from megatron_longpo.data.templating import ChatTemplate, ContentNotFoundError
from megatron_longpo.data.tokenizer import ChatTokenizer, Message


class DropReason(enum.StrEnum):
    """Why a record gives no pair. Records are dropped whole; nothing is ever cut."""

    EMPTY_ANSWER = "empty_answer"
    """An answer is blank."""
    ANSWER_CUT_OFF = "answer_cut_off"
    """The generation limit cut an answer (``metadata.turns[i].finish_reason_*`` is ``length``)."""
    IDENTICAL_SIDES = "identical_sides"
    """Chosen and rejected are the same tokens: no preference."""
    LONG_SIDE_TOO_LONG = "long_side_too_long"
    """A long chat has more than ``--seq-length`` tokens."""
    SHORT_SIDE_TOO_LONG = "short_side_too_long"
    """A short chat has more than ``--short-seq-length`` tokens."""
    TEXT_CHANGED_BY_TEMPLATE = "text_changed_by_template"
    """The template rewrites a message, so it cannot be located."""
    CONTROL_TOKEN_IN_TEXT = "control_token_in_text"
    """A document, question or answer spells a control token such as ``</s>``, which would be encoded as one."""
    ANSWER_NOT_ON_TOKENS = "answer_not_on_tokens"
    """An answer shares a token with the template's own text, or its tokens do not decode to it."""
    NO_END_OF_TURN = "no_end_of_turn"
    """The template puts no control token after an answer."""
    DUPLICATE_DOCUMENT = "duplicate_document"
    """The document is that of an earlier record."""
    LABELS_UNUSABLE = "labels_unusable"
    """Imported data: labels that are not the tokens they stand on, no answer, or turns that do not match between sides."""


class DroppedError(Exception):
    """Raised for a record that gives no pair."""

    def __init__(self, reason: DropReason) -> None:
        """Say why."""
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class LengthLimits:
    """Longest chats, in tokens.

    Attributes:
        seq_length: of each long side.
        short_seq_length: of each short side; None means no limit.
    """

    seq_length: int
    short_seq_length: int | None = None

    def check(self, pair: PreferencePair) -> None:
        """Raise `DroppedError` for a pair with a side over its limit."""
        if max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) > self.seq_length:
            raise DroppedError(DropReason.LONG_SIDE_TOO_LONG)
        longest = max(len(side.input_ids) for side in (*pair.short_chosen, *pair.short_rejected))
        if self.short_seq_length is not None and longest > self.short_seq_length:
            raise DroppedError(DropReason.SHORT_SIDE_TOO_LONG)


class RecordTokenizer:
    """Turns records into pairs.

    Long side: one chat whose first user message is document, blank line, instruction, whose later ones are the instruction
    alone, each followed by that side's answer. Short side: one chat a turn. Answers enter the template stripped.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Render and encode with a tokenizer."""
        self.tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._encoder = ChatEncoder(tokenizer)
        self._is_control = np.zeros(max([tokenizer.vocab_size, *(id_ + 1 for id_ in tokenizer.control_ids)]), dtype=bool)
        self._is_control[list(tokenizer.control_ids)] = True

    def pair(self, record: PreferenceRecord, limits: LengthLimits) -> PreferencePair:
        """The pair of a record whose chats are within limits.

        Raises:
            DroppedError: there is none, with the reason.
        """
        if record.is_cut_off():
            raise DroppedError(DropReason.ANSWER_CUT_OFF)
        if any(not turn.chosen.strip() or not turn.rejected.strip() for turn in record.turns):
            raise DroppedError(DropReason.EMPTY_ANSWER)
        if all(turn.chosen.strip() == turn.rejected.strip() for turn in record.turns):
            raise DroppedError(DropReason.IDENTICAL_SIDES)
        known: dict[str, Encoding] = {}
        chosen, content_spans = self._chat(_long_chat(record, "chosen"), known)
        rejected, _ = self._chat(_long_chat(record, "rejected"), known)
        short = {
            side: tuple(self._chat(_short_chat(turn, side), known)[0] for turn in record.turns) for side in ("chosen", "rejected")
        }
        pair = PreferencePair(record.document_id, chosen, rejected, content_spans, short["chosen"], short["rejected"])
        if np.array_equal(chosen.input_ids, rejected.input_ids):
            raise DroppedError(DropReason.IDENTICAL_SIDES)
        limits.check(pair)
        return pair

    def _chat(self, messages: Sequence[Message], known: dict[str, Encoding]) -> tuple[Side, tuple[Span, ...]]:
        """A chat's tokens with the spans of its answers, and the spans of all its contents (user text, answers with end)."""
        try:
            text, places = self._template.render(messages)
        except ContentNotFoundError:
            raise DroppedError(DropReason.TEXT_CHANGED_BY_TEMPLATE) from None
        encoding = self._encoder.encode(text, places, known)
        spans = []
        for message, (start, end) in zip(messages, places, strict=True):
            span = token_span(encoding, start, end)
            ids = encoding.ids[slice(*span)]
            if self._is_control[ids].any():
                raise DroppedError(DropReason.CONTROL_TOKEN_IN_TEXT)
            if message["role"] == "assistant":
                if _canonical(self.tokenizer.decode(ids)) != _canonical(text[start:end]):
                    raise DroppedError(DropReason.ANSWER_NOT_ON_TOKENS)
                span = span[0], self._end_of_turn(encoding, span[1], text, end)
            spans.append(span)
        answers = tuple(span for message, span in zip(messages, spans, strict=True) if message["role"] == "assistant")
        return Side(encoding.ids, answers), tuple(spans)

    def _end_of_turn(self, encoding: Encoding, after: int, text: str, end: int) -> int:
        """One past the control token that ends an answer; some templates put a space before it, which then belongs to it."""
        for index in range(after, len(encoding.ids)):
            if self._is_control[encoding.ids[index]]:
                return index + 1
            if text[end : encoding.end_of(index)].strip():
                break
        raise DroppedError(DropReason.NO_END_OF_TURN)


def _long_chat(record: PreferenceRecord, side: str) -> list[Message]:
    messages: list[Message] = []
    for index, turn in enumerate(record.turns):
        question = f"{record.long_context}\n\n{turn.instruction}" if index == 0 else turn.instruction
        messages += _exchange(question, getattr(turn, side))
    return messages


def _short_chat(turn: Turn, side: str) -> list[Message]:
    return _exchange(f"{turn.short_context}\n\n{turn.instruction}", getattr(turn, side))


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]


def token_span(encoding: Encoding, start: int, end: int) -> Span:
    """The tokens that cover any of the characters ``[start, end)``."""
    return encoding.first_ending_after(start), encoding.first_starting_from(end)


def _canonical(text: str) -> str:
    """Some tokenizers compose characters (Qwen: NFC), which is no change of text."""
    return unicodedata.normalize("NFC", text.strip())
