"""One preference pair as token ids: what the dataset on disk gives and what packing takes."""

from __future__ import annotations

import dataclasses

import numpy as np

Span = tuple[int, int]
"""``[start, end)`` in token positions of the sequence it belongs to."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One conversation with its answers.

    Attributes:
        input_ids: int32 ``[s]``.
        answer_spans: one span a turn, in order: the answer's tokens and its end-of-turn token.
    """

    input_ids: np.ndarray
    answer_spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """A document with its turns.

    Attributes:
        document_id: the record's id.
        chosen: the long chat with the chosen answers.
        rejected: the long chat with the rejected answers.
        content_spans: spans of ``chosen`` that are not the template's own tokens (user text and answers), for the NLL
            scope ``no-template``.
        short_chosen: for each turn, the short context's chat with the chosen answer (one answer span).
        short_rejected: the same with the rejected answer.
    """

    document_id: str
    chosen: Side
    rejected: Side
    content_spans: tuple[Span, ...]
    short_chosen: tuple[Side, ...]
    short_rejected: tuple[Side, ...]

    @property
    def num_turns(self) -> int:
        """Number of turns."""
        return len(self.chosen.answer_spans)
