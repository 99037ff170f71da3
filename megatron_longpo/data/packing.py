"""From pairs to one packed sequence: ``[shared prefix | chosen tail | rejected tail]`` for each pair, padding at the very end.

Shift and masks are made here, once, on the whole sequence; nothing downstream moves a label.

The last prefix row predicts the first token of *both* tails, but a row has one label. So the rejected tail starts with a copy
of the last prefix token: same token, same position ``P-1``, attached to the first ``P-1`` prefix tokens, hence the same hidden
state, with the first rejected token as its label.

Where the objective reads the short chats too, they follow, each turn's two sides packed the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from megatron_longpo.config.schema import NllScope
from megatron_longpo.data.batch import PreferenceBatch
from megatron_longpo.data.layout import shared_prefix_length
from megatron_longpo.data.pair import PreferencePair, Side, Span
from megatron_longpo.parallel.packed_sequence import Chain, chain_positions
from megatron_longpo.utils.constants import IGNORE_INDEX


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingOptions:
    """Which rows of a pair are wanted.

    Attributes:
        prefix_sharing: encode the common prefix once; otherwise both sides are whole sequences (the oracle of the first).
        nll_scope: targets of the NLL, or None when the NLL has no weight.
        with_rejected: whether the rejected long side is needed at all (not for SFT).
        with_short: whether the short chats of each turn are needed, both sides of them.
        multiple: the packed length is padded to a multiple of it.
    """

    prefix_sharing: bool = True
    nll_scope: NllScope | None = "all"
    with_rejected: bool = True
    with_short: bool = False
    multiple: int = 1


@dataclasses.dataclass(frozen=True)
class PackItem:
    """A pair with its reference log-probs and its place in the data.

    Attributes:
        pair: the pair.
        reference_logps: float64 (chosen, rejected), ``[t, 2]``; ``[t, 4]`` on the short chats, then on the long one; or None.
        sample_id: (dataset, index).
    """

    pair: PreferencePair
    reference_logps: np.ndarray | None = None
    sample_id: tuple[int, int] = (0, 0)


def packed_size(
    lengths: tuple[int, int, int], options: PackingOptions, short_lengths: Iterable[tuple[int, int, int]] = ()
) -> tuple[int, int]:
    """Packed rows of a pair of such lengths, before padding, and its pairs of query and key.

    Args:
        lengths: tokens of the chosen and of the rejected side, and of the start that they share, see `shared_prefix_length`.
        options: which rows are wanted.
        short_lengths: the same of each turn's short chats; looked at only if they are wanted.
    """
    both = dataclasses.replace(options, with_rejected=True)
    sizes = [_sides_size(*lengths, options)]
    if options.with_short:
        sizes += [_sides_size(*each, both) for each in short_lengths]
    rows, score_pairs = zip(*sizes, strict=True)
    return sum(rows), sum(score_pairs)


def _sides_size(chosen: int, rejected: int, prefix: int, options: PackingOptions) -> tuple[int, int]:
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

    def __init__(self, num_pairs: int, max_turns: int) -> None:
        self.num_pairs, self.max_turns = num_pairs, max_turns
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
    """Append the chains of a pair: of the long chats, then of each turn's short ones."""
    segments = [index * rows.max_turns + turn for turn in range(pair.num_turns)]
    nll = {"nll_pair": _nll_map(pair, index, options.nll_scope)}
    try:
        _add_sides(rows, pair.chosen, pair.rejected if options.with_rejected else None, segments, nll, options)
        if options.with_short:
            for segment, chosen, rejected in zip(segments, pair.short_chosen, pair.short_rejected, strict=True):
                _add_sides(rows, chosen, rejected, [rows.num_pairs * rows.max_turns + segment], {}, options)
    except ValueError as error:
        raise ValueError(f"document {pair.document_id}: {error}") from None


def _add_sides(
    rows: _Rows,
    chosen: Side,
    rejected: Side | None,
    segments: Sequence[int],
    maps: dict[str, np.ndarray],
    options: PackingOptions,
) -> None:
    """Append two chats, or the chosen one alone. ``segments``: where their answers count; ``maps``: where else chosen rows do."""
    maps = {**maps, "chosen_turn": _target_map(len(chosen.input_ids), chosen.answer_spans, segments)}
    if rejected is None:
        rows.add_chain(chosen.input_ids, maps)
        return
    rejected_map = _target_map(len(rejected.input_ids), rejected.answer_spans, segments)
    if not options.prefix_sharing:
        rows.add_chain(chosen.input_ids, maps)
        rows.add_chain(rejected.input_ids, {"rejected_turn": rejected_map})
        return
    prefix = shared_prefix_length(chosen.input_ids, rejected.input_ids)
    if prefix == 0:
        raise ValueError("chosen and rejected do not start with the same token")
    trunk_rejected = np.full(len(chosen.input_ids), -1, dtype=np.int64)
    trunk_rejected[: prefix - 1] = rejected_map[: prefix - 1]
    rows.add_chain(chosen.input_ids, {**maps, "rejected_turn": trunk_rejected})
    tail = slice(prefix - 1, None)  # the copy of the last prefix token, then the rejected tail
    rows.add_chain(
        rejected.input_ids[tail], {"rejected_turn": rejected_map[tail]}, parent=len(rows.chains) - 1, attach=prefix - 1
    )


def pack_pairs(items: Sequence[PackItem], options: PackingOptions) -> PreferenceBatch:
    """Pack pairs into one sequence, in order.

    Args:
        items: at least one pair.
        options: which rows are wanted, and what length is padded to.

    Returns:
        The micro-batch, on the CPU.
    """
    max_turns = max(item.pair.num_turns for item in items)
    rows = _Rows(len(items), max_turns)
    for index, item in enumerate(items):
        _add_pair(rows, index, item.pair, options)
    padding = -rows.length % options.multiple
    if padding:
        rows.add_chain(np.zeros(padding, dtype=np.int64), {})
    positions = np.concatenate([np.asarray(r, dtype=np.int64) for r in chain_positions(rows.chains)])
    nll_pair = np.concatenate(rows.maps["nll_pair"])
    nll_tokens = np.bincount(nll_pair[nll_pair >= 0], minlength=len(items)).astype(np.float64)
    tables = _pair_tables(items, max_turns, options)
    return PreferenceBatch(
        tokens=torch.from_numpy(np.concatenate(rows.tokens)),
        labels=torch.from_numpy(np.concatenate(rows.labels)),
        position_ids=torch.from_numpy(positions),
        nll_pair=torch.from_numpy(nll_pair),
        chosen_turn=torch.from_numpy(np.concatenate(rows.maps["chosen_turn"])),
        rejected_turn=torch.from_numpy(np.concatenate(rows.maps["rejected_turn"])),
        known_weights=torch.from_numpy(_known_weights(rows, nll_tokens, options)),
        chains=tuple(rows.chains),
        nll_tokens=torch.from_numpy(nll_tokens),
        turn_mask=torch.from_numpy(tables["mask"]),
        answer_tokens=torch.from_numpy(tables["tokens"]),
        short_answer_tokens=torch.from_numpy(tables["short_tokens"]),
        reference_logps=torch.from_numpy(tables["reference"]),
        long_reference_logps=torch.from_numpy(tables["long_reference"]),
        sample_ids=torch.tensor([item.sample_id for item in items], dtype=torch.int64),
    )


def _known_weights(rows: _Rows, nll_tokens: np.ndarray, options: PackingOptions) -> np.ndarray:
    """Weights of the rows that count in the NLL alone: one over the pair's targets. A preference weighs answers by its margin."""
    nll_pair, *turns = (np.concatenate(parts) for parts in rows.maps.values())
    alone = nll_pair >= 0
    if options.with_rejected or options.with_short:
        for turn in turns:
            alone &= turn < 0
    return np.where(alone, 1.0 / np.maximum(nll_tokens, 1)[np.maximum(nll_pair, 0)], 0.0)


def _pair_tables(items: Sequence[PackItem], max_turns: int, options: PackingOptions) -> dict[str, np.ndarray]:
    shape = (len(items), max_turns, 2)
    tables = {"mask": np.zeros(shape[:2]), "tokens": np.zeros(shape), "short_tokens": np.zeros(shape)}
    tables |= {"reference": np.full(shape, np.nan), "long_reference": np.full(shape, np.nan)}
    for index, item in enumerate(items):
        pair, turns = item.pair, item.pair.num_turns
        tables["mask"][index, :turns] = 1
        for side, conversation in enumerate((pair.chosen, pair.rejected) if options.with_rejected else (pair.chosen,)):
            tables["tokens"][index, :turns, side] = [end - start for start, end in conversation.answer_spans]
        if options.with_short:
            for side, chats in enumerate((pair.short_chosen, pair.short_rejected)):
                tables["short_tokens"][index, :turns, side] = [end - start for ((start, end),) in (c.answer_spans for c in chats)]
        if item.reference_logps is not None:
            contexts = np.split(item.reference_logps, item.reference_logps.shape[1] // 2, axis=1)
            for name, logps in zip(("reference", "long_reference"), contexts, strict=False):
                tables[name][index, :turns] = logps
    return tables


def short_pairs(pair: PreferencePair) -> list[PreferencePair]:
    """Each turn of a pair as a pair of its own that reads the turn's short context: what the reference scores."""
    return [
        PreferencePair(f"{pair.document_id}#{turn}", chosen, rejected, (), (), ())
        for turn, (chosen, rejected) in enumerate(zip(pair.short_chosen, pair.short_rejected, strict=True))
    ]
