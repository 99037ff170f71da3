"""What generation is told to do, and the two published ways of doing it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_longpo.generation.prompts import LEAD_INS
from megatron_longpo.utils.errors import UserError

Preset = Literal["paper", "release"]
PRESETS: dict[str, tuple[int, float]] = {"paper": (4, 0.0), "release": (2, 1.0)}
"""Turns of a document and temperature of the answers: in the paper, and in the released code (whose nucleus is everything)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are drawn.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: draw among the most probable tokens that together have this probability.
        max_new_tokens: most tokens of an answer.
    """

    temperature: float
    top_p: float = 1.0
    max_new_tokens: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Everything that decides which pairs come out of a document, next to the model itself.

    Attributes:
        seed: seed of every choice.
        num_turns: most turns (questions, each of a chunk of its own) of a document.
        seq_length: most tokens of one side of a pair: document, questions, answers and template.
        min_chunk_tokens: fewest tokens of a chunk.
        max_chunk_tokens: most tokens of a chunk.
        num_questions: questions asked for a chunk, of which one is used.
        max_question_tokens: a longer question is not used.
        question_sampling: how questions are drawn.
        answer_sampling: how both answers are drawn.
        drop_cut_off: drop a turn with an answer that ``max_new_tokens`` ended, and let another chunk take its place. Otherwise
            the record tells of it (``finish_reason``), and preprocessing drops the record.
        lead_ins: phrases of which one precedes each question.
    """

    seed: int = 42
    num_turns: int = PRESETS["paper"][0]
    seq_length: int = 4096
    min_chunk_tokens: int = 256
    max_chunk_tokens: int = 1024
    num_questions: int = 4
    max_question_tokens: int = 128
    question_sampling: Sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)
    answer_sampling: Sampling = Sampling(temperature=PRESETS["paper"][1])
    drop_cut_off: bool = False
    lead_ins: tuple[str, ...] = LEAD_INS

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: a bound is not positive, or two bounds contradict each other.
        """
        for name in ("num_turns", "seq_length", "min_chunk_tokens", "num_questions", "max_question_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.max_chunk_tokens < self.min_chunk_tokens:
            raise UserError(f"--max-chunk-tokens {self.max_chunk_tokens} is below --min-chunk-tokens {self.min_chunk_tokens}")
        for name, sampling in (("question", self.question_sampling), ("answer", self.answer_sampling)):
            if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
                raise UserError(f"{name}s: temperature must be >= 0, top-p in (0, 1], the number of new tokens at least 1")
        if not self.lead_ins or any(not phrase.strip() for phrase in self.lead_ins):
            raise UserError("lead-in phrases: at least one, and none blank")
