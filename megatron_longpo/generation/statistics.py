"""What a run made, in numbers and examples: the content of its report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_longpo.generation.measures import Distribution, Sample

NUM_SAMPLES = 8
NUM_DROPPED_SAMPLES = 12
NUM_POINTS = 600
"""Turns of which both answers' lengths are kept one by one."""

EXCERPT_CHARACTERS = 600
ANSWER_CHARACTERS = 2000
MARGIN_STEPS = 1000
"""Log-prob margins are counted in thousandths of a nat."""

LENGTHS = {
    "document": "document_tokens",
    "chunk": "chunk_tokens",
    "question": "question_tokens",
    "chosen": "tokens_chosen",
    "rejected": "tokens_rejected",
}
"""What is measured, and the field of the metadata that has its tokens; what has no such field is left out."""

VERDICTS = (
    *("judged", "chosen_answers", "chosen_fails", "chosen_undecided"),
    *("chosen_better", "rejected_better", "better_undecided"),
)
SIGNS = ("positive", "zero", "negative", "not_finite")


def collect(
    records: Iterable[dict[str, Any]], dropped: Iterable[dict[str, Any]], drops: Mapping[str, int], run: Mapping[str, Any]
) -> dict[str, Any]:
    """Sum up a run, reading each record and each dropped turn once.

    Memory does not grow with the run, and the result does not depend on the order of either stream: what is shown of them is
    chosen by a hash of the document's id and the chunk's number.

    Args:
        records: records in the format of docs/data-format.md.
        dropped: rows of the side file.
        drops: how often something was dropped, by ``level: reason``.
        run: settings, engines, seconds and the like, which are copied.

    Returns:
        JSON values. ``lengths`` lacks what no record tells; ``verifier`` and ``margins`` are None if no turn was judged
        or scored.
    """
    kept = _Kept()
    for record in records:
        kept.add(record)
    rejected = _Dropped()
    for row in dropped:
        rejected.add(row)
    return {
        **kept.summary(),
        "dropped_turns": rejected.count,
        "drops": group_drops(drops),
        "dropped_samples": rejected.samples(),
        "run": dict(run),
    }


def group_drops(drops: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Group counts by level (document, chunk, turn), the most frequent reason first."""
    levels: dict[str, dict[str, int]] = {"document": {}, "chunk": {}, "turn": {}}
    for key, count in sorted(drops.items(), key=lambda item: (-item[1], item[0])):
        level, colon, reason = key.partition(": ")
        known = colon and level in levels
        levels.setdefault(level if known else "other", {})[reason if known else key] = count
    return levels


def shorten(text: str, limit: int) -> str:
    """Take out the middle of a long text and say how much that was."""
    if len(text) <= limit:
        return text
    start, end = text[: 2 * limit // 3], text[-(limit // 3) :]
    return f"{start} [... {len(text) - len(start) - len(end):,} characters ...] {end}"


class _Kept:
    """The turns of the output."""

    def __init__(self) -> None:
        self._records = self._turns = self._parts = 0
        self._turns_per_record: Counter[int] = Counter()
        self._lengths = {name: Distribution("tokens") for name in LENGTHS}
        self._cut_off: Counter[str] = Counter()
        self._longer: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._margins = Distribution("nats", scale=MARGIN_STEPS)
        self._signs: Counter[str] = Counter()
        self._points, self._samples = Sample(NUM_POINTS), Sample(NUM_SAMPLES)

    def add(self, record: Mapping[str, Any]) -> None:
        turns, metadata = record["turns"], record.get("metadata", {})
        self._records += 1
        self._turns_per_record[len(turns)] += 1
        self._measure(metadata, "document")
        self._parts += len(record["long_context"]) < metadata.get("document_characters", 0)
        for turn, about in zip(turns, metadata.get("turns") or [{}] * len(turns), strict=True):
            self._add_turn(record["document_id"], turn, about)

    def _add_turn(self, document_id: str, turn: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        for what in ("chunk", "question", "chosen", "rejected"):
            self._measure(about, what)
        for side in ("chosen", "rejected"):
            self._cut_off[side] += about.get(f"finish_reason_{side}") == "length"
        self._judge(about)
        name = document_id, about.get("chunk_id", ""), turn["instruction"]
        lengths = about.get("tokens_chosen"), about.get("tokens_rejected")
        if isinstance(lengths[0], int) and isinstance(lengths[1], int):
            self._longer["chosen" if lengths[0] > lengths[1] else "rejected" if lengths[0] < lengths[1] else "neither"] += 1
            self._points.offer(name, lambda: list(lengths))
        self._samples.offer(name, lambda: _kept_sample(document_id, turn, about))
        self._turns += 1

    def _measure(self, about: Mapping[str, Any], name: str) -> None:
        if isinstance(tokens := about.get(LENGTHS[name]), int):
            self._lengths[name].add(tokens)

    def _judge(self, about: Mapping[str, Any]) -> None:
        """Count verdicts; where one of the two is absent, the verifier was undecided."""
        answers, better = about.get("verified_chosen"), about.get("verified_better")
        if answers is not None or better is not None:
            self._verdicts["judged"] += 1
            self._verdicts[{True: "chosen_answers", False: "chosen_fails", None: "chosen_undecided"}[answers]] += 1
            self._verdicts[{True: "chosen_better", False: "rejected_better", None: "better_undecided"}[better]] += 1
        margin = about.get("logprob_margin")
        if margin is None:
            return
        if not math.isfinite(margin):
            self._signs["not_finite"] += 1
            return
        self._margins.add(margin)
        self._signs["positive" if margin > 0 else "negative" if margin < 0 else "zero"] += 1

    def summary(self) -> dict[str, Any]:
        margins = self._margins.summary()
        return {
            "records": self._records,
            "turns": self._turns,
            "parts": self._parts,
            "turns_per_record": {str(turns): count for turns, count in sorted(self._turns_per_record.items())},
            "lengths": {name: summary for name, spread in self._lengths.items() if (summary := spread.summary())},
            "cut_off": {side: self._cut_off[side] for side in ("chosen", "rejected")},
            "longer": {name: self._longer[name] for name in ("chosen", "rejected", "neither")},
            "answer_lengths": sorted(self._points.values()),
            "verifier": {name: self._verdicts[name] for name in VERDICTS} if self._verdicts else None,
            "margins": margins and {**margins, **{name: self._signs[name] for name in SIGNS}},
            "samples": self._samples.values(),
        }


class _Dropped:
    """The rows of the side file."""

    def __init__(self) -> None:
        self.count = 0
        self._by_reason: dict[str, Sample] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        self.count += 1
        sample = self._by_reason.setdefault(row["reason"], Sample(NUM_DROPPED_SAMPLES))
        name = row["document_id"], row["chunk_id"], row["step"], row.get("question") or ""
        sample.offer(name, lambda: _dropped_sample(row))

    def samples(self) -> list[dict[str, Any]]:
        """Choose one of each reason, then a second of each, and so on."""
        columns = [self._by_reason[reason].values() for reason in sorted(self._by_reason)]
        rounds = (column[place] for place in range(NUM_DROPPED_SAMPLES) for column in columns if place < len(column))
        return [sample for sample, _ in zip(rounds, range(NUM_DROPPED_SAMPLES), strict=False)]


def _kept_sample(document_id: str, turn: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    copied = ("chunk_id", "tokens_chosen", "tokens_rejected", "verified_chosen", "verified_better", "logprob_margin")
    return {
        "document_id": document_id,
        "question": shorten(about.get("question") or turn["instruction"], ANSWER_CHARACTERS),
        "excerpt": shorten(turn["short_context"], EXCERPT_CHARACTERS),
        **{side: shorten(turn[side], ANSWER_CHARACTERS) for side in ("chosen", "rejected")},
        **{name: about[name] for name in copied if about.get(name) is not None},
    }


def _dropped_sample(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: row.get(name) for name in ("question", "chosen", "rejected")}
    return {
        **{name: row[name] for name in ("document_id", "chunk_id", "reason", "step")},
        **{name: None if text is None else shorten(text, ANSWER_CHARACTERS) for name, text in texts.items()},
    }
