"""How a preference pair becomes integer sequences, and back. docs/data-format.md describes it to the byte.

A pair is one document of ``3 + 2 * num_turns`` int32 sequences::

    header | chosen | rejected, without the shared prefix | for each turn: short chosen, short rejected
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_longpo.data.pair import PreferencePair, Side, Span

FORMAT_VERSION = 2
FIXED_FIELDS = 4
"""Format version, number of turns, length of the shared prefix, number of content spans."""


def shared_prefix_length(chosen: np.ndarray, rejected: np.ndarray) -> int:
    """Length of the longest common start of two int32 ``[s]`` arrays; at least one token is left to the shorter one."""
    shorter = min(len(chosen), len(rejected))
    differs = np.flatnonzero(chosen[:shorter] != rejected[:shorter])
    return min(int(differs[0]) if len(differs) else shorter, shorter - 1)


def pack_pair(pair: PreferencePair) -> list[np.ndarray]:
    """The sequences of a pair, int32."""
    prefix = shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids)
    groups = (
        pair.chosen.answer_spans,
        pair.rejected.answer_spans,
        pair.content_spans,
        [side.answer_spans[0] for side in pair.short_chosen],
        [side.answer_spans[0] for side in pair.short_rejected],
    )
    bounds = [bound for group in groups for span in group for bound in span]
    name = pair.document_id.encode("utf-8")
    header = [FORMAT_VERSION, pair.num_turns, prefix, len(pair.content_spans), *bounds, *name]
    sequences = [np.array(header), pair.chosen.input_ids, pair.rejected.input_ids[prefix:]]
    for chosen, rejected in zip(pair.short_chosen, pair.short_rejected, strict=True):
        sequences += [chosen.input_ids, rejected.input_ids]
    return [np.ascontiguousarray(sequence, dtype=np.int32) for sequence in sequences]


def read_header(header: np.ndarray) -> tuple[tuple[int, ...], int, list[Span], str]:
    """What a header says: number of spans of each group, shared prefix, spans, and the document's id.

    Raises:
        ValueError: it is of another version, or contradicts itself.
    """
    if len(header) <= FIXED_FIELDS or header[0] != FORMAT_VERSION:
        raise ValueError(f"the pair has format version {header[0]}, this program reads {FORMAT_VERSION}")
    num_turns, prefix, num_content = (int(value) for value in header[1:FIXED_FIELDS])
    counts = (num_turns, num_turns, num_content, num_turns, num_turns)
    end = FIXED_FIELDS + 2 * sum(counts)
    if num_turns < 1 or num_content < 0 or len(header) <= end:
        raise ValueError("the pair's header contradicts itself")
    spans = [(int(start), int(stop)) for start, stop in header[FIXED_FIELDS:end].reshape(-1, 2)]
    return counts, prefix, spans, bytes(header[end:].tolist()).decode("utf-8")


def unpack_pair(sequences: Sequence[np.ndarray]) -> PreferencePair:
    """The pair of some sequences.

    Raises:
        ValueError: the sequences contradict themselves: another version, or counts that do not fit.
    """
    header, chosen, rejected_tail = sequences[:3]
    short = sequences[3:]
    counts, prefix, bounds, document_id = read_header(header)
    if len(short) != 2 * counts[0]:
        raise ValueError("the pair's header does not fit its sequences")
    if not 0 <= prefix <= len(chosen):
        raise ValueError(f"the shared prefix of {prefix} tokens is longer than the chosen side")
    groups: list[tuple[Span, ...]] = []
    for count in counts:
        groups.append(tuple(bounds[:count]))
        bounds = bounds[count:]
    chosen_spans, rejected_spans, content_spans, short_chosen_spans, short_rejected_spans = groups
    return PreferencePair(
        document_id=document_id,
        chosen=Side(chosen, chosen_spans),
        rejected=Side(np.concatenate([chosen[:prefix], rejected_tail]), rejected_spans),
        content_spans=content_spans,
        short_chosen=tuple(Side(ids, (span,)) for ids, span in zip(short[0::2], short_chosen_spans, strict=True)),
        short_rejected=tuple(Side(ids, (span,)) for ids, span in zip(short[1::2], short_rejected_spans, strict=True)),
    )


def check_pair(pair: PreferencePair) -> list[str]:
    """What is wrong with a pair, in words; empty when nothing is."""
    sides = [("chosen", pair.chosen, pair.num_turns), ("rejected", pair.rejected, pair.num_turns)]
    for turn, (chosen, rejected) in enumerate(zip(pair.short_chosen, pair.short_rejected, strict=True)):
        sides += [(f"short chosen {turn}", chosen, 1), (f"short rejected {turn}", rejected, 1)]
    problems = []
    for name, side, num_answers in sides:
        problems += _check_spans(f"{name} answer", side.answer_spans, len(side.input_ids))
        if len(side.answer_spans) != num_answers:
            problems.append(f"{name}: {len(side.answer_spans)} answers for {num_answers} turns")
        if len(side.input_ids) and side.input_ids.min() < 0:
            problems.append(f"{name}: holds a negative token id")
    problems += _check_spans("content", pair.content_spans, len(pair.chosen.input_ids))
    if np.array_equal(pair.chosen.input_ids, pair.rejected.input_ids):
        problems.append("chosen and rejected are the same tokens")
    return problems


def _check_spans(name: str, spans: Sequence[Span], length: int) -> list[str]:
    """Spans must be non-empty, in order, disjoint and inside the sequence."""
    problems = []
    previous_end = 0
    for start, end in spans:
        if not previous_end <= start < end <= length:
            problems.append(f"{name} span [{start}, {end}) is empty, out of order or outside [0, {length})")
        previous_end = end
    return problems
