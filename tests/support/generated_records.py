"""Made-up output of generation: records, dropped turns and counts, as `generation.run` writes them."""

from __future__ import annotations

import random
from typing import Any

WORDS = "the road over hill leads to old mill and river bends where ferry waits while wind turns slowly"
REASONS = ("refusal of the chosen answer", "repetition in the rejected answer", "identical answers", "chosen answer too short")


def text(rng: random.Random, words: int) -> str:
    """Write sentences of about twelve words."""
    drawn = rng.choices(WORDS.split(), k=words)
    sentences = [" ".join(drawn[start : start + 12]).capitalize() + "." for start in range(0, words, 12)]
    return " ".join(sentences)


def make_record(number: int, *, checked: bool = True) -> dict[str, Any]:
    """Make a record that depends on its number alone."""
    rng = random.Random(number)
    turns = [make_turn(rng, chunk, checked=checked) for chunk in range(rng.choice([1, 2, 3, 4, 4, 4]))]
    tokens = int(rng.uniform(3000, 9000))
    return {
        "document_id": f"book-{number}",
        "long_context": text(rng, 200),
        "turns": [turn for turn, _ in turns],
        "metadata": {
            "document_tokens": tokens,
            "document_characters": 6 * tokens if number % 3 else 0,
            "turns": [about for _, about in turns],
        },
    }


def make_turn(rng: random.Random, chunk: int, *, checked: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Make a turn and what the metadata says of it."""
    question = text(rng, 11).rstrip(".") + "?"
    chosen, rejected = int(rng.lognormvariate(4.2, 0.7)) + 2, int(rng.lognormvariate(4.5, 0.9)) + 2
    turn = {
        "short_context": text(rng, 180),
        "instruction": f"Going by the text above, answer this: {question}",
        "chosen": text(rng, chosen),
        "rejected": text(rng, rejected),
    }
    about = {
        "chunk_id": chunk,
        "chunk_tokens": int(rng.uniform(256, 1024)),
        "question": question,
        "question_tokens": int(rng.uniform(8, 40)),
        "finish_reason_chosen": "length" if chosen > 400 else "stop",
        "finish_reason_rejected": "length" if rejected > 400 else "stop",
        "tokens_chosen": chosen,
        "tokens_rejected": rejected,
    }
    if checked:
        about |= {"verified_chosen": rng.random() < 0.8, "verified_better": rng.random() < 0.6}
        about |= {"logprob_margin": rng.gauss(12, 20)}
    return turn, about


def make_dropped(number: int) -> dict[str, Any]:
    """Make a row of the side file that depends on its number alone."""
    rng = random.Random(f"dropped {number}")
    reason = rng.choice(REASONS)
    return {
        "document_id": f"book-{rng.randrange(300)}",
        "chunk_id": rng.randrange(9),
        "reason": reason,
        "step": "chosen" if "chosen" in reason else "rejected",
        "question": text(rng, 11).rstrip(".") + "?",
        "chosen": text(rng, 40),
        "rejected": None if "chosen" in reason else text(rng, 60),
        "chunk_start": 0,
        "chunk_end": 1000,
    }
