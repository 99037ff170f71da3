"""From pairs to one packed sequence: ``[shared prefix | chosen tail | rejected tail]`` for each pair, padding at the very end.

Shift and masks are made here, once, on the whole sequence; nothing downstream moves a label.

The last prefix row predicts the first token of *both* tails, but a row has one label. So the rejected tail starts with a copy
of the last prefix token: same token, same position ``P-1``, attached to the first ``P-1`` prefix tokens, hence the same hidden
state, with the first rejected token as its label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from megatron_longpo.config.schema import NllScope
from megatron_longpo.data.batch import PreferenceBatch
from megatron_longpo.data.layout import shared_prefix_length
from megatron_longpo.data.pair import PreferencePair, Span
from megatron_longpo.parallel.packed_sequence import Chain, chain_positions
from megatron_longpo.utils.constants import IGNORE_INDEX


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """Which rows of a pair are wanted.

    Attributes:
        prefix_sharing: encode the common prefix once; otherwise both sides are whole sequences (the oracle of the first).
        nll_scope: targets of the NLL, or None when the NLL has no weight.
        with_rejected: whether the rejected side is needed at all (not for SFT).
        multiple: the packed length is padded to a multiple of it.
    """

    prefix_sharing: bool = True
    nll_scope: NllScope | None = "all"
    with_rejected: bool = True
    multiple: int = 1


@dataclasses.dataclass(frozen=True)
class PackItem:
    """A pair with its reference log-probs and its place in the data.

    Attributes:
        pair: the pair.
        reference_logps: ``[t, 2]`` float64 (chosen, rejected) or None.
        sample_id: (dataset, index).
    """

    pair: PreferencePair
    reference_logps: np.ndarray | None = None
    sample_id: tuple[int, int] = (0, 0)


def packed_size(chosen: int, rejected: int, prefix: int, options: PackingOptions) -> tuple[int, int]:
    """Packed rows of a pair of such lengths, before padding, and its pairs of query and key.

    Args:
        chosen: tokens of the chosen side.
        rejected: tokens of the rejected side.
        prefix: tokens that they share, see `shared_prefix_length`.
        options: which rows are wanted.
    """
    if not options.with_rejected:
        return chosen, _triangle(chosen)
    if not options.prefix_sharing:
        return chosen + rejected, _triangle(chosen) + _triangle(rejected)
    tail = rejected - prefix + 1
    return chosen + tail, _triangle(chosen) + tail * (prefix - 1) + _triangle(tail)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


class _Rows:
    """Rows being packed. Maps are filled in by chain; every array grows by the same amount."""

    def __init__(self, max_turns: int) -> None:
        self.max_turns = max_turns
        self.chains: list[Chain] = []
        self.tokens: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.maps: dict[str, list[np.ndarray]] = {"nll_pair": [], "chosen_turn": [], "rejected_turn": []}
        self.length = 0

    def add_chain(self, ids: np.ndarray, maps: dict[str, np.ndarray], parent: int | None = None, attach: int = 0) -> None:
        """Append a chain of ``ids``. A map holds, for each row, where its target (the next token of the chain) counts."""
        self.chains.append(Chain(self.length, len(ids), parent, attach))
        unused = np.full(len(ids), -1, dtype=np.int64)
        wanted = np.zeros(len(ids), dtype=bool)
        for name, parts in self.maps.items():
            parts.append(maps.get(name, unused))
            wanted |= parts[-1] >= 0
        shifted = np.append(ids[1:], IGNORE_INDEX).astype(np.int64)
        self.tokens.append(ids.astype(np.int64))
        self.labels.append(np.where(wanted, shifted, IGNORE_INDEX))
        self.length += len(ids)


def _target_map(length: int, spans: Sequence[Span], values: Sequence[int]) -> np.ndarray:
    """``[length]`` map over rows: ``values[i]`` where the row's target, the *next* token, lies in ``spans[i]``; -1 elsewhere."""
    rows = np.full(length, -1, dtype=np.int64)
    for (start, end), value in zip(spans, values, strict=True):
        rows[max(start - 1, 0) : end - 1] = value
    return rows


def _nll_map(pair: PreferencePair, index: int, scope: NllScope | None) -> np.ndarray:
    length = len(pair.chosen.input_ids)
    spans: Sequence[Span] = ()
    if scope == "all":
        spans = ((1, length),)
    elif scope == "no-template":
        spans = pair.content_spans
    elif scope == "answers":
        spans = pair.chosen.answer_spans
    return _target_map(length, spans, [index] * len(spans))


def _add_pair(rows: _Rows, index: int, pair: PreferencePair, options: PackingOptions) -> None:
    turns = [index * rows.max_turns + turn for turn in range(pair.num_turns)]
    chosen, rejected = pair.chosen.input_ids, pair.rejected.input_ids
    maps = {
        "nll_pair": _nll_map(pair, index, options.nll_scope),
        "chosen_turn": _target_map(len(chosen), pair.chosen.answer_spans, turns),
    }
    if not options.with_rejected:
        rows.add_chain(chosen, maps)
        return
    rejected_map = _target_map(len(rejected), pair.rejected.answer_spans, turns)
    if not options.prefix_sharing:
        rows.add_chain(chosen, maps)
        rows.add_chain(rejected, {"rejected_turn": rejected_map})
        return
    prefix = shared_prefix_length(chosen, rejected)
    if prefix == 0:
        raise ValueError(f"document {pair.document_id}: chosen and rejected do not start with the same token")
    trunk_rejected = np.full(len(chosen), -1, dtype=np.int64)
    trunk_rejected[: prefix - 1] = rejected_map[: prefix - 1]
    rows.add_chain(chosen, {**maps, "rejected_turn": trunk_rejected})
    tail = slice(prefix - 1, None)  # the copy of the last prefix token, then the rejected tail
    rows.add_chain(rejected[tail], {"rejected_turn": rejected_map[tail]}, parent=len(rows.chains) - 1, attach=prefix - 1)


def pack_pairs(items: Sequence[PackItem], options: PackingOptions) -> PreferenceBatch:
    """Pack pairs into one sequence, in order.

    Args:
        items: at least one pair.
        options: which rows are wanted, and what length is padded to.

    Returns:
        The micro-batch, on the CPU.
    """
    max_turns = max(item.pair.num_turns for item in items)
    rows = _Rows(max_turns)
    for index, item in enumerate(items):
        _add_pair(rows, index, item.pair, options)
    padding = -rows.length % options.multiple
    if padding:
        rows.add_chain(np.zeros(padding, dtype=np.int64), {})
    positions = np.concatenate([np.asarray(r, dtype=np.int64) for r in chain_positions(rows.chains)])
    nll_pair = np.concatenate(rows.maps["nll_pair"])
    nll_tokens = np.bincount(nll_pair[nll_pair >= 0], minlength=len(items)).astype(np.float64)
    tables = _pair_tables(items, max_turns, with_rejected=options.with_rejected)
    return PreferenceBatch(
        tokens=torch.from_numpy(np.concatenate(rows.tokens)),
        labels=torch.from_numpy(np.concatenate(rows.labels)),
        position_ids=torch.from_numpy(positions),
        nll_pair=torch.from_numpy(nll_pair),
        chosen_turn=torch.from_numpy(np.concatenate(rows.maps["chosen_turn"])),
        rejected_turn=torch.from_numpy(np.concatenate(rows.maps["rejected_turn"])),
        known_weights=torch.from_numpy(_known_weights(rows, nll_tokens, with_rejected=options.with_rejected)),
        chains=tuple(rows.chains),
        nll_tokens=torch.from_numpy(nll_tokens),
        turn_mask=torch.from_numpy(tables["mask"]),
        answer_tokens=torch.from_numpy(tables["tokens"]),
        reference_logps=torch.from_numpy(tables["reference"]),
        sample_ids=torch.tensor([item.sample_id for item in items], dtype=torch.int64),
    )


def _known_weights(rows: _Rows, nll_tokens: np.ndarray, *, with_rejected: bool) -> np.ndarray:
    """Weights of the rows that count in the NLL alone: one over the pair's targets. A preference weighs answers by its margin."""
    nll_pair, *turns = (np.concatenate(parts) for parts in rows.maps.values())
    alone = nll_pair >= 0
    if with_rejected:
        for turn in turns:
            alone &= turn < 0
    return np.where(alone, 1.0 / np.maximum(nll_tokens, 1)[np.maximum(nll_pair, 0)], 0.0)


def _pair_tables(items: Sequence[PackItem], max_turns: int, *, with_rejected: bool) -> dict[str, np.ndarray]:
    mask = np.zeros((len(items), max_turns))
    tokens = np.zeros((len(items), max_turns, 2))
    reference = np.full((len(items), max_turns, 2), np.nan)
    for index, item in enumerate(items):
        turns = item.pair.num_turns
        mask[index, :turns] = 1
        sides = (item.pair.chosen, item.pair.rejected) if with_rejected else (item.pair.chosen,)
        for side, conversation in enumerate(sides):
            tokens[index, :turns, side] = [end - start for start, end in conversation.answer_spans]
        if item.reference_logps is not None:
            reference[index, :turns] = item.reference_logps
    return {"mask": mask, "tokens": tokens, "reference": reference}


def short_pairs(pair: PreferencePair) -> list[PreferencePair]:
    """Each turn of a pair as a pair of its own that reads the turn's short context: what the reference scores."""
    return [
        PreferencePair(f"{pair.document_id}#{turn}", chosen, rejected, (), (), ())
        for turn, (chosen, rejected) in enumerate(zip(pair.short_chosen, pair.short_rejected, strict=True))
    ]
