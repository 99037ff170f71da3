"""Texts as tokens, and which tokens stand on which characters."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

MARGIN = 256
"""Characters of a long text that are encoded beyond a place to find the place's token: some dozens of tokens."""


class Encoding(Protocol):
    """A text as tokens. The answers are those of a search in the tokens' offsets."""

    @property
    def ids(self) -> np.ndarray:
        """The tokens, int32 ``[s]``."""

    def first_ending_after(self, position: int) -> int:
        """The first token that covers the character at ``position`` or a later one; the number of tokens if none does."""

    def first_starting_from(self, position: int) -> int:
        """The first token that covers no character before ``position``; the number of tokens if there is none."""

    def end_of(self, token: int) -> int:
        """One past the last character that a token covers."""


@dataclasses.dataclass(frozen=True)
class OffsetEncoding:
    """An `Encoding` that holds all offsets.

    Attributes:
        ids: int32 ``[s]``.
        starts: int64 ``[s]``: the first character of each token.
        ends: int64 ``[s]``: one past its last character. Tokens that share a character (the bytes of an emoji) all cover it.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def first_ending_after(self, position: int) -> int:
        """See `Encoding`."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def first_starting_from(self, position: int) -> int:
        """See `Encoding`."""
        return int(np.searchsorted(self.starts, position, side="left"))

    def end_of(self, token: int) -> int:
        """See `Encoding`."""
        return int(self.ends[token])


class NativeEncoding:
    """An `Encoding` over one of the ``tokenizers`` library, which is asked for single offsets: a list of all is slow to make."""

    def __init__(self, encoded: Any) -> None:
        """Take the library's encoding."""
        self._encoded = encoded
        self.ids = np.array(encoded.ids, dtype=np.int32)

    def first_ending_after(self, position: int) -> int:
        """See `Encoding`."""
        return bisect.bisect_right(range(len(self.ids)), position, key=self.end_of)

    def first_starting_from(self, position: int) -> int:
        """See `Encoding`."""
        return bisect.bisect_left(range(len(self.ids)), position, key=lambda token: self._encoded.token_to_chars(token)[0])

    def end_of(self, token: int) -> int:
        """See `Encoding`."""
        return int(self._encoded.token_to_chars(token)[1])


class LongEncoding:
    """An `Encoding` of a long text, of which only the ids are computed; offsets come from its two ends.

    An excerpt from the text's start to a little behind a place is encoded with offsets. Where its ids are those of the text from
    the start to that place, so are its offsets; the same holds backwards from the text's end. Else the whole text is encoded
    again.
    """

    def __init__(self, text: str, encode_ids: Callable[[str], np.ndarray], encode: Callable[[str], Encoding]) -> None:
        """Encode the text with ``encode_ids``; ``encode`` gives the same ids, and offsets."""
        self.ids = encode_ids(text)
        self._text = text
        self._encode = encode
        self._whole: Encoding | None = None

    def first_ending_after(self, position: int) -> int:
        """See `Encoding`."""
        if 4 * position > len(self._text):
            return self._all().first_ending_after(position)
        head = self._encode(self._text[: position + MARGIN])
        token = head.first_ending_after(position)
        if token + 1 < len(head.ids) and np.array_equal(head.ids[: token + 1], self.ids[: token + 1]):
            return token
        return self._all().first_ending_after(position)

    def first_starting_from(self, position: int) -> int:
        """See `Encoding`."""
        if position >= len(self._text):
            return len(self.ids)
        if 4 * position < 3 * len(self._text):
            return self._all().first_starting_from(position)
        tail = self._encode(self._text[max(0, position - MARGIN) :])
        token = tail.first_starting_from(min(position, MARGIN))
        following = len(tail.ids) - token
        if token > 1 and np.array_equal(tail.ids[token - 1 :], self.ids[-following - 1 :]):
            return len(self.ids) - following
        return self._all().first_starting_from(position)

    def end_of(self, token: int) -> int:
        """See `Encoding`."""
        return self._all().end_of(token)

    def _all(self) -> Encoding:
        if self._whole is None:
            self._whole = self._encode(self._text)
        return self._whole
