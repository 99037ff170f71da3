"""What generation is told to do, and the two published ways of doing it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from megatron_longpo.generation.filters import FilterSettings
from megatron_longpo.generation.prompts import LEAD_INS, Prompts
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError

CheckMode = Literal["off", "record", "filter"]
"""Do not check; write the finding into the record; or drop the turn as well."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published way.

    Attributes:
        num_turns: most turns of a document.
        temperature: of the answers; in the released code their nucleus is everything.
        chunk_tokens: fewest and most tokens of a chunk.
        turn_order: order of a record's turns.
    """

    num_turns: int
    temperature: float
    chunk_tokens: tuple[int, int]
    turn_order: Literal["document", "shuffled"]


PRESETS = {
    "paper": Preset(4, 0.0, (1, 32768), "document"),
    "release": Preset(2, 1.0, (16384, 30000), "shuffled"),
}
"""The paper tells no lower bound of a chunk; ours is a quarter of the upper one, see `default_chunk_tokens`."""
MIN_DOCUMENT_TOKENS = 65536
"""Both ways take documents of more than 64K tokens (arXiv 2502.13922, section 4.1), at each target length."""


QUESTION_SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)
ANSWER_SAMPLING = Sampling(temperature=PRESETS["paper"].temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Everything that decides which pairs come out of a document, next to the model itself.

    Attributes:
        seed: seed of every choice.
        num_turns: most turns (questions, each of a chunk of its own) of a document.
        turn_order: turns stand in the order of their chunks, or in a random one.
        seq_length: most tokens of one side of a pair: document, questions, answers and template.
        min_document_tokens: a shorter document is dropped.
        max_document_tokens: a longer document is dropped; one that is longer than fits is cut.
        min_chunk_tokens: fewest tokens of a chunk.
        max_chunk_tokens: most tokens of a chunk.
        num_questions: questions asked for a chunk, of which one is used.
        max_question_tokens: a longer question is not used.
        question_sampling: how questions are drawn.
        answer_sampling: how both answers are drawn.
        lead_ins: phrases of which one precedes each question.
        prompts: templates.
        filters: which answers are not used.
        verify: let the model judge the answers, from the chunk.
        logprob_margin: compute how much more probable the chosen answer is than the rejected one, given the chunk.
        min_logprob_margin: in nats; a turn with less is dropped where ``logprob_margin`` is ``filter``.
    """

    seed: int = 42
    num_turns: int = PRESETS["paper"].num_turns
    turn_order: Literal["document", "shuffled"] = "document"
    seq_length: int = 4096
    min_document_tokens: int = 1
    max_document_tokens: int | None = None
    min_chunk_tokens: int = 256
    max_chunk_tokens: int = 1024
    num_questions: int = 4
    max_question_tokens: int = 128
    question_sampling: Sampling = QUESTION_SAMPLING
    answer_sampling: Sampling = ANSWER_SAMPLING
    lead_ins: tuple[str, ...] = LEAD_INS
    prompts: Prompts = dataclasses.field(default_factory=Prompts)
    filters: FilterSettings = dataclasses.field(default_factory=FilterSettings)
    verify: CheckMode = "off"
    logprob_margin: CheckMode = "off"
    min_logprob_margin: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: a bound is not positive, or two bounds contradict each other.
        """
        bounds = ("num_turns", "seq_length", "min_document_tokens", "min_chunk_tokens", "num_questions", "max_question_tokens")
        for name in bounds:
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.max_chunk_tokens < self.min_chunk_tokens:
            raise UserError(f"--max-chunk-tokens {self.max_chunk_tokens} is below --min-chunk-tokens {self.min_chunk_tokens}")
        if self.max_document_tokens is not None and self.max_document_tokens < self.min_document_tokens:
            raise UserError(
                f"--max-document-tokens {self.max_document_tokens} is below --min-document-tokens {self.min_document_tokens}"
            )
        for name, sampling in (("question", self.question_sampling), ("answer", self.answer_sampling)):
            if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_new_tokens < 1:
                raise UserError(f"{name}s: temperature must be >= 0, top-p in (0, 1], the number of new tokens at least 1")
        if not self.lead_ins or any(not phrase.strip() for phrase in self.lead_ins):
            raise UserError("lead-in phrases: at least one, and none blank")


def default_chunk_tokens(preset: Preset, seq_length: int) -> tuple[int, int]:
    """Return the bounds of a chunk: the preset's where four chunks of them fit into the sequence, else a share of it."""
    low, high = preset.chunk_tokens
    most = min(high, seq_length // 4)
    least = most // 4 if low == 1 else low if low < most else most // 2
    return max(1, least), max(1, most)
