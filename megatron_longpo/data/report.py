"""What a dataset holds, for people: statistics, and one pair in colour."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from megatron_longpo.data.layout import shared_prefix_length
from megatron_longpo.data.manifest import Manifest
from megatron_longpo.data.pair import PreferencePair, Side, Span
from megatron_longpo.data.tokenizer import ChatTokenizer

RESET = "\x1b[0m"
TEMPLATE_STYLE = "\x1b[2m"
CONTENT_STYLE = ""
ANSWER_STYLE = "\x1b[1;32m"
SHARED_STYLE = "\x1b[36m"


def summary_lines(manifest: Manifest) -> list[str]:
    """Counts, drops, lengths and sharing."""
    lines = [
        f"pairs       {manifest.num_pairs} of {manifest.num_records} records, {manifest.num_turns} turns",
        f"dropped     {sum(manifest.drops.values())}",
        *(f"  {reason:<24} {count}" for reason, count in manifest.drops.items()),
        f"limits      {manifest.seq_length} tokens a long side, {manifest.short_seq_length or 'no limit on'} a short side",
        *map(_input_line, manifest.job.get("inputs", [])),
        f"tokenizer   {manifest.tokenizer.source or 'not recorded'}",
        f"data hash   {manifest.data_hash}",
        f"{'tokens':<16}{'count':>10}{'minimum':>10}{'mean':>12}{'maximum':>10}",
    ]
    for name, row in manifest.lengths.items():
        lines.append(f"  {name:<14}{row['count']:>10}{row['minimum']:>10}{row['mean']:>12.1f}{row['maximum']:>10}")
    both = manifest.lengths["chosen"]["mean"] + manifest.lengths["rejected"]["mean"]
    saved = manifest.lengths["shared_prefix"]["mean"] / both
    lines.append(f"sharing     {saved:.1%} of the long tokens need not be encoded twice")
    return lines


def _input_line(described: Mapping[str, Any]) -> str:
    """An input of a dataset, with what was taken of it where that was counted."""
    line = f"input       {described['name']}"
    if "taken" in described:
        line += f": {described['taken']} of {described['records']} records, {described['bad_lines']} bad lines"
    return line


def render_pair(pair: PreferencePair, tokenizer: ChatTokenizer | None, colour: bool = True) -> Iterator[str]:
    """One pair, line by line, with its masks.

    Args:
        pair: to show.
        tokenizer: decodes; without one, ids are shown.
        colour: mark with ANSI colours; else with brackets: ``[[answer]]``, ``((template))``.
    """
    prefix = shared_prefix_length(pair.chosen.input_ids, pair.rejected.input_ids)
    shown = " ".join(
        _paint(text, style, colour)
        for text, style in (
            ("template", TEMPLATE_STYLE),
            ("content", CONTENT_STYLE),
            ("answer", ANSWER_STYLE),
            ("shared with chosen", SHARED_STYLE),
        )
    )
    yield f"document {pair.document_id}: {pair.num_turns} turns, {prefix} shared tokens   [{shown}]"
    yield f"--- chosen, {len(pair.chosen.input_ids)} tokens"
    yield _render(pair.chosen, pair.content_spans, tokenizer, colour)
    yield f"--- rejected, {len(pair.rejected.input_ids)} tokens"
    yield _render(pair.rejected, ((prefix, len(pair.rejected.input_ids)),), tokenizer, colour, SHARED_STYLE)
    for turn, sides in enumerate(zip(pair.short_chosen, pair.short_rejected, strict=True)):
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            yield f"--- reference of turn {turn}, {name}, {len(side.input_ids)} tokens"
            yield _render(side, ((0, len(side.input_ids)),), tokenizer, colour)


def _render(
    side: Side, content: tuple[Span, ...], tokenizer: ChatTokenizer | None, colour: bool, outside: str = TEMPLATE_STYLE
) -> str:
    """The side's text in stretches of one style: answers, then content, then what is outside both."""
    styles = np.full(len(side.input_ids), 0)
    for start, end in content:
        styles[start:end] = 1
    for start, end in side.answer_spans:
        styles[start:end] = 2
    table = (outside, CONTENT_STYLE, ANSWER_STYLE)
    edges = [0, *(np.flatnonzero(np.diff(styles)) + 1).tolist(), len(styles)]
    pieces = []
    for start, end in itertools.pairwise(edges):
        ids = side.input_ids[start:end]
        text = tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids)) + " "
        pieces.append(_paint(text, table[styles[start]], colour))
    return "".join(pieces)


def _paint(text: str, style: str, colour: bool) -> str:
    if colour:
        return f"{style}{text}{RESET}" if style else text
    marks = {ANSWER_STYLE: "[[{}]]", TEMPLATE_STYLE: "(({}))", SHARED_STYLE: "<<{}>>"}
    return marks.get(style, "{}").format(text)
