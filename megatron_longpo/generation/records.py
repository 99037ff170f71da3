"""A finished document as a record in the format of docs/data-format.md."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_longpo.generation.documents import Document
from megatron_longpo.generation.work import Turn, Work


def make_record(work: Work, turns: list[Turn], generation: dict[str, Any]) -> dict[str, Any]:
    """Write a record without the texts that stand in the document: its long context and the short ones.

    Args:
        work: the document.
        turns: in their order.
        generation: settings and engines.
    """
    return {
        "document_id": work.document_id,
        "turns": [
            {"instruction": turn.instruction, "chosen": _text(turn, "chosen"), "rejected": _text(turn, "rejected")}
            for turn in turns
        ],
        "metadata": {
            "document": work.document.metadata,
            "domain": work.document.domain,
            "document_characters": len(work.document.text),
            "document_tokens": work.num_tokens,
            "long_context_start": work.start,
            "long_context_end": work.end,
            "turns": [_describe(work.document_id, number, turn, generation) for number, turn in enumerate(turns)],
            "generation": generation,
        },
    }


def restore_texts(record: dict[str, Any], document: Document) -> dict[str, Any]:
    """Return the whole record, fields in the order of the format."""
    metadata = record["metadata"]
    turns = [
        {"short_context": document.text[origin["chunk_start"] : origin["chunk_end"]], **turn}
        for turn, origin in zip(record["turns"], metadata["turns"], strict=True)
    ]
    return {
        "document_id": record["document_id"],
        "long_context": document.text[metadata["long_context_start"] : metadata["long_context_end"]],
        "turns": turns,
        "metadata": metadata,
    }


def _text(turn: Turn, side: str) -> str:
    answer = getattr(turn, side)
    assert answer is not None
    return answer.text


def _describe(document_id: str, turn_id: int, turn: Turn, generation: dict[str, Any]) -> dict[str, Any]:
    """Tell where a turn comes from; the character offsets are those of the document that was read.

    What the checks of this run found is there, and null where the verifier could not tell.
    """
    assert turn.chosen is not None
    assert turn.rejected is not None
    checks: dict[str, Any] = {}
    if generation["verify"] != "off":
        checks |= {"verified_chosen": turn.verified_chosen, "verified_better": turn.verified_better}
    if generation["logprob_margin"] != "off":
        checks["logprob_margin"] = turn.logprob_margin
    return {
        "document_id": document_id,
        "chunk_id": turn.chunk.index,
        "turn_id": turn_id,
        "chunk_start": turn.chunk.start,
        "chunk_end": turn.chunk.end,
        "chunk_tokens": turn.chunk.num_tokens,
        "lead_in": turn.lead_in,
        "question": turn.question,
        "question_tokens": turn.question_tokens,
        "finish_reason_chosen": turn.chosen.finish_reason,
        "finish_reason_rejected": turn.rejected.finish_reason,
        "tokens_chosen": turn.chosen.num_tokens,
        "tokens_rejected": turn.rejected.num_tokens,
        **checks,
    }


def describe_settings(settings: Any) -> dict[str, Any]:
    """Return settings as JSON values: what a record tells of them, and what its identity depends on."""
    described = dataclasses.asdict(settings)
    del described["lead_ins"]
    described["prompts"] = settings.prompts.fingerprint
    described["filters"]["enabled"] = sorted(settings.filters.enabled)
    return described
