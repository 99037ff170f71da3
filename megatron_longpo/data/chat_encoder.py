"""Rendered chats as tokens: each stretch of text is encoded once, and the ids are those of the whole text encoded at once."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from megatron_longpo.data.encoding import Encoding, LongEncoding
from megatron_longpo.data.pair import Span
from megatron_longpo.data.tokenizer import ChatTokenizer

LONG_TEXT = 4096
"""Characters from which offsets cost more than they are worth: `LongEncoding`."""
ANCHOR = "a"
"""Put before a piece that begins with a space, so that it is encoded as what follows a word."""
LEFT_ENDS = ("a", "A b", " ", "  ", "\n", "\n\n", "\t", ".", "'", "(", "<", "[", "<|", "</", "7", "é", "e\u0301", "文", "\xa0")
RIGHT_STARTS = ("a", "Ab", " ", "  a", "\n", "\n\n", "\t", ".", "'s", ")", ">", "]", "|>", "/", "7", "é", "\u0301", "文", "\xa0")
"""How contents end and begin where a cut between them is tried: what pre-tokenisers, normalisers and merges care about."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part of a chat's text, in the encoding of that text with ``anchor`` characters and ``skipped`` tokens before it."""

    encoding: Encoding
    anchor: int = 0
    skipped: int = 0

    @property
    def ids(self) -> np.ndarray:
        return self.encoding.ids[self.skipped :]


class ChatEncoding:
    """The `Encoding` of a whole chat, made of those of its pieces."""

    def __init__(self, pieces: Sequence[_Piece], cuts: Sequence[int]) -> None:
        """Join pieces; ``cuts`` are the characters at which they begin."""
        self.ids = np.concatenate([piece.ids for piece in pieces])
        self._pieces = pieces
        self._characters = list(cuts)
        self._tokens = list(itertools.accumulate((len(piece.ids) for piece in pieces), initial=0))

    def first_ending_after(self, position: int) -> int:
        """See `Encoding`."""
        index = bisect.bisect_right(self._characters, position) - 1
        piece = self._pieces[index]
        inside = position - self._characters[index] + piece.anchor
        return self._tokens[index] + piece.encoding.first_ending_after(inside) - piece.skipped

    def first_starting_from(self, position: int) -> int:
        """See `Encoding`."""
        index = max(bisect.bisect_left(self._characters, position) - 1, 0)
        piece = self._pieces[index]
        inside = position - self._characters[index] + piece.anchor
        return self._tokens[index] + piece.encoding.first_starting_from(inside) - piece.skipped

    def end_of(self, token: int) -> int:
        """See `Encoding`."""
        index = bisect.bisect_right(self._tokens, token, hi=len(self._pieces)) - 1
        piece = self._pieces[index]
        inside = piece.encoding.end_of(token - self._tokens[index] + piece.skipped)
        return self._characters[index] + inside - piece.anchor


class ChatEncoder:
    """Encodes chats in pieces.

    The text is cut once between every two contents, where the tokenizer says that what stands on one side has no part in how the
    other is encoded. Each such place is tried at its first use, with contents that end and begin in all the ways that matter;
    where the ids would not be those of the whole text, it is not cut. Pieces that were encoded before are taken from ``known``:
    both sides of a pair begin with the same document and question.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Encode with a tokenizer."""
        self._tokenizer = tokenizer
        self._anchor_tokens = len(tokenizer.encode_ids(ANCHOR))
        self._cuts: dict[str, int | None] = {}

    def encode(self, text: str, places: Sequence[Span], known: dict[str, Encoding]) -> ChatEncoding:
        """Encode a chat.

        Args:
            text: the rendered chat.
            places: the characters of its contents, in order.
            known: encodings by text, which grow by those of this chat.

        Returns:
            The ids of the whole text, and its tokens' places.
        """
        cuts = [0]
        for (_, start), (end, _) in itertools.pairwise(places):
            # White space at both ends may be the contents' own, so it counts as theirs, but for the first behind the words.
            words = text[start:end].strip()
            first = text.find(words, start)
            cut = self._cut(text[first : min(first + len(words) + 1, end)])
            if cut is not None:
                cuts.append(first + cut)
        quick = len(cuts) == len(places)  # the place of a content in the middle of a piece takes all offsets
        bounds = itertools.pairwise([*cuts, len(text)])
        return ChatEncoding([self._piece(text[start:end], start > 0, known, quick) for start, end in bounds], cuts)

    def _piece(self, text: str, follows: bool, known: dict[str, Encoding], quick: bool = False) -> _Piece:
        anchored = follows and text.startswith(" ")
        if anchored:
            text = ANCHOR + text
        if text not in known:
            tokenizer = self._tokenizer
            long = quick and len(text) >= LONG_TEXT
            known[text] = LongEncoding(text, tokenizer.encode_ids, tokenizer.encode) if long else tokenizer.encode(text)
        return _Piece(known[text], len(ANCHOR), self._anchor_tokens) if anchored else _Piece(known[text])

    def _cut(self, between: str) -> int | None:
        """Where to cut in what the template writes between two contents, if anywhere."""
        if between not in self._cuts:
            found = (cut for cut in self._tokenizer.find_cuts(between) if self._holds(between, cut))
            self._cuts[between] = next(found, None)
        return self._cuts[between]

    def _holds(self, between: str, cut: int) -> bool:
        """Whether a cut leaves the ids as they are, whatever stands around it."""
        for left, right in itertools.product(LEFT_ENDS, RIGHT_STARTS):
            whole = self._tokenizer.encode_ids(f"word{left}{between}{right}word")
            first = self._piece(f"word{left}{between[:cut]}", False, {})
            second = self._piece(f"{between[cut:]}{right}word", True, {})
            if not np.array_equal(whole, np.concatenate([first.ids, second.ids])):
                return False
        return True
