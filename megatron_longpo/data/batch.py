"""A micro-batch: one packed sequence of one or more pairs, with what the objective needs to know of each row."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megatron_longpo.parallel.context_parallel import zigzag_slice
from megatron_longpo.parallel.packed_sequence import Chain, PackedInput


@dataclasses.dataclass(frozen=True)
class PreferenceBatch:
    """``p`` pairs of up to ``t`` turns in one packed sequence of ``s`` rows. Segment maps hold -1 where a row does not count.

    Attributes:
        tokens: ``[s]`` int64.
        labels: ``[s]`` int64, the next token of the row's own chain, or `IGNORE_INDEX`.
        position_ids: ``[s]`` int64.
        nll_pair: ``[s]`` int64, the pair whose NLL the row's target counts in.
        chosen_turn: ``[s]`` int64, ``pair * t + turn`` of the chosen answer that the row's target belongs to; ``p * t`` more in
            the turn's short chat.
        rejected_turn: ``[s]`` int64, the same for rejected answers. A target in the shared prefix can count in both.
        known_weights: ``[s]`` float64, weight of the row's log-prob in the loss up to one factor common to all, where it is known
            before the loss is; 0 elsewhere.
        chains: the packed sequence's chains.
        nll_tokens: ``[p]`` float64, divisor of each pair's NLL: the number of its targets.
        turn_mask: ``[p, t]`` float64, 1 where the turn exists.
        answer_tokens: ``[p, t, 2]`` float64, answer tokens of (chosen, rejected); 0 for a side that is not packed.
        short_answer_tokens: ``[p, t, 2]`` float64, the same of the short chats.
        reference_logps: ``[p, t, 2]`` float64, the reference's log-probs of (chosen, rejected); NaN where there is none.
        long_reference_logps: ``[p, t, 2]`` float64, those on the long chat, where the objective needs both contexts; else NaN.
        sample_ids: ``[p, 2]`` int64, (dataset, index) of each pair.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    nll_pair: Tensor
    chosen_turn: Tensor
    rejected_turn: Tensor
    known_weights: Tensor
    chains: tuple[Chain, ...]
    nll_tokens: Tensor
    turn_mask: Tensor
    answer_tokens: Tensor
    short_answer_tokens: Tensor
    reference_logps: Tensor
    long_reference_logps: Tensor
    sample_ids: Tensor

    @property
    def length(self) -> int:
        """Rows of the whole packed sequence."""
        return self.tokens.size(0)

    @property
    def num_pairs(self) -> int:
        """Pairs in the micro-batch."""
        return self.turn_mask.size(0)

    def to_tensors(self) -> list[Tensor]:
        """Tensors that `from_tensors` rebuilds the batch from, for a broadcast."""
        chains = torch.tensor(
            [[c.start, c.length, -1 if c.parent is None else c.parent, c.attach] for c in self.chains], dtype=torch.int64
        )
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [chains if isinstance(value, tuple) else value for value in fields]

    @classmethod
    def from_tensors(cls, tensors: list[Tensor]) -> PreferenceBatch:
        """Inverse of `to_tensors`."""
        values = dict(zip((field.name for field in dataclasses.fields(cls)), tensors, strict=True))
        rows = values.pop("chains").tolist()
        chains = tuple(Chain(start, length, None if parent < 0 else parent, attach) for start, length, parent, attach in rows)
        return cls(chains=chains, **values)

    def slice_context(self, cp_size: int, cp_rank: int) -> RankBatch:
        """The rows that one context-parallel rank holds. Labels were shifted on the whole sequence, so no target is lost."""
        rows = {
            name: zigzag_slice(getattr(self, name), cp_size, cp_rank)
            for name in ("tokens", "labels", "position_ids", "nll_pair", "chosen_turn", "rejected_turn", "known_weights")
        }
        packed = PackedInput(
            rows["tokens"], rows["labels"], rows["position_ids"], self.chains, self.length, rows["known_weights"]
        )
        return RankBatch(packed, rows["nll_pair"], rows["chosen_turn"], rows["rejected_turn"], self)


@dataclasses.dataclass(frozen=True)
class RankBatch:
    """One context-parallel rank's rows of a micro-batch.

    Attributes:
        packed: what the model reads.
        nll_pair: ``[s/cp]``, see `PreferenceBatch`.
        chosen_turn: ``[s/cp]``.
        rejected_turn: ``[s/cp]``.
        whole: the batch that the rows were taken from.
    """

    packed: PackedInput
    nll_pair: Tensor
    chosen_turn: Tensor
    rejected_turn: Tensor
    whole: PreferenceBatch
