"""What a document gathers on its way to a record."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from megatron_longpo.generation.chunking import Chunk
from megatron_longpo.generation.documents import Document
from megatron_longpo.inference.engine import Completion


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a document.

    Attributes:
        record: the line of the output without the texts that stand in the document (`records.restore_texts`), or None if the
            document was dropped.
        drops: for each reason, how often something was dropped: ``document: ...``, ``chunk: ...`` or ``turn: ...``.
        dropped: a row for each turn that was dropped.
        failed: requests that got no answer.
    """

    record: dict[str, Any] | None
    drops: dict[str, int]
    dropped: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """A question of a chunk, its answers as far as there are any, and what was found out about them.

    Attributes:
        chunk: what the question is about.
        lead_in: the phrase that leads to the question.
        question: the question alone.
        question_tokens: its length.
        instruction: both: what the user asks, in the short context and in the long one.
        chosen: the answer from the chunk.
        rejected: the answer from the whole document.
        verified_chosen: whether the model, reading the chunk, says that the chosen answer answers; None if it does not tell.
        verified_better: whether it prefers chosen to rejected in both orders; False for the contrary, None if it is undecided.
        logprob_margin: how much more probable the model finds chosen than rejected, given the chunk, in nats.
    """

    chunk: Chunk
    lead_in: str
    question: str
    question_tokens: int
    instruction: str
    chosen: Completion | None = None
    rejected: Completion | None = None
    verified_chosen: bool | None = None
    verified_better: bool | None = None
    logprob_margin: float | None = None


@dataclasses.dataclass
class Work:
    """A document on its way.

    Attributes:
        document: the document.
        num_tokens: tokens of its text.
        start: first character of the part that fits.
        end: one past its last character.
        waiting: chunks not asked about yet, in the order of asking.
        open: turns with a chosen answer, which wait for the rejected one.
        turns: finished turns.
        drops: what was dropped, by reason.
        dropped: rows of the dropped turns.
    """

    document: Document
    num_tokens: int = 0
    start: int = 0
    end: int = 0
    waiting: list[Chunk] = dataclasses.field(default_factory=list)
    open: list[Turn] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    drops: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dropped: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def document_id(self) -> str:
        """Its id."""
        return self.document.document_id

    @property
    def long_context(self) -> str:
        """The part that fits."""
        return self.document.text[self.start : self.end]

    def text_of(self, chunk: Chunk) -> str:
        """A chunk's text."""
        return self.document.text[chunk.start : chunk.end]

    def drop_turn(self, turn: Turn, step: str, reason: str) -> None:
        """Count a turn as dropped at a step, and keep what there is of it."""
        self.drops[f"turn: {reason}"] += 1
        self.dropped.append(
            {
                "document_id": self.document_id,
                "chunk_id": turn.chunk.index,
                "reason": reason,
                "step": step,
                "question": turn.question,
                "chosen": turn.chosen.text if turn.chosen else None,
                "rejected": turn.rejected.text if turn.rejected else None,
                "chunk_start": turn.chunk.start,
                "chunk_end": turn.chunk.end,
            }
        )
