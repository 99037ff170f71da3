"""The reference as a teacher: what it would say, word by word, where the policy reads the chosen answers.

The teacher reads each turn's short chat; of its rows only those that predict an answer's tokens are kept, as last hidden states.
Answers come in one order, pair by pair, turn by turn, token by token, on both sides, so that the rank that holds a row of the
policy finds the teacher's, whichever rank computed it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.data.batch import PreferenceBatch, RankBatch
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.loader import rank_batch
from megatron_longpo.data.packing import PackingOptions, PackItem, short_pairs
from megatron_longpo.data.pair import Side
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.parallel.collectives import ProcessGroup, reduce_sum
from megatron_longpo.parallel.context_parallel import zigzag_slice
from megatron_longpo.parallel.packed_sequence import TeacherRows
from megatron_longpo.parallel.pipeline import run_schedule
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.utils.errors import UserError


def with_teacher(
    model: Sequence[LogProbGPTModel],
    batches: Sequence[RankBatch],
    datasets: Sequence[PreferenceDataset],
    state: ParallelState,
) -> list[RankBatch]:
    """Batches that know, on the last pipeline stage, what the teacher says of each chosen answer's tokens.

    Args:
        model: the frozen model's chunks; the same layout as the policy's.
        batches: this data-parallel rank's micro-batches, chosen long chats alone.
        datasets: where their pairs come from.
        state: groups.

    Raises:
        UserError: if an answer is other tokens in the short chat than in the long one, naming the document.

    Parallel: the pipeline schedule; the tensor and context groups.
    """
    short = [_short_batch(batch, datasets, state) for batch in batches]
    for long_batch, short_batch in zip(batches, short, strict=True):
        if not torch.equal(_answers(long_batch.whole), _answers(short_batch.whole)):
            raise UserError(_other_tokens(long_batch, datasets))
    taught = []
    for batch, states in zip(batches, _answer_states(model, short, state), strict=False):  # none but on the last stage
        teacher = TeacherRows(_answer_rows(batch.whole, state.cp_group), states, model[-1].head_weight.detach())
        taught.append(dataclasses.replace(batch, packed=dataclasses.replace(batch.packed, teacher=teacher)))
    return taught or list(batches)


def _short_batch(batch: RankBatch, datasets: Sequence[PreferenceDataset], state: ParallelState) -> RankBatch:
    options = PackingOptions(nll_scope=None, with_rejected=False, multiple=state.sequence_multiple)
    items = None
    if state.tp_group.rank() == 0:
        items = [
            PackItem(part, sample_id=(dataset, index))
            for dataset, index in batch.whole.sample_ids.tolist()
            for part in short_pairs(datasets[dataset][index])
        ]
    return rank_batch(items, options, state)


def _answers(whole: PreferenceBatch) -> Tensor:
    """Tokens of the chosen answers."""
    return whole.labels[whole.chosen_turn >= 0]


def _answer_rows(whole: PreferenceBatch, cp_group: ProcessGroup) -> Tensor:
    """``[s/cp]``: the number, among all answers' tokens, of the one that a row predicts; -1 where it predicts none."""
    counts = whole.chosen_turn >= 0
    return zigzag_slice(torch.where(counts, counts.cumsum(0) - 1, -1), cp_group.size(), cp_group.rank())


def _answer_states(model: Sequence[LogProbGPTModel], batches: Sequence[RankBatch], state: ParallelState) -> list[Tensor]:
    """Last hidden states of each batch's answers, ``[a, h]``, on every context rank of the last stage; elsewhere nothing."""

    def forward(iterator: Iterator[RankBatch], chunk: torch.nn.Module) -> tuple[Tensor, functools.partial]:
        batch = next(iterator)
        return chunk(batch.packed, states_alone=True), functools.partial(keep, batch)

    def keep(batch: RankBatch, states: Tensor) -> tuple[Tensor, dict[str, Any]]:
        rows = _answer_rows(batch.whole, state.cp_group)
        held = rows >= 0
        answers = states.new_zeros(_answers(batch.whole).size(0), states.size(1))
        answers[rows[held]] = states[held]
        return states.new_zeros(()), {"states": reduce_sum(answers, state.cp_group)}

    return [report["states"] for report in run_schedule(forward, model, batches, forward_only=True)]


def _other_tokens(batch: RankBatch, datasets: Sequence[PreferenceDataset]) -> str:
    def answer(side: Side, turn: int) -> list[int]:
        start, end = side.answer_spans[turn]
        return side.input_ids[start:end].tolist()

    for dataset, index in batch.whole.sample_ids.tolist():
        pair = datasets[dataset][index]
        for turn, short in enumerate(pair.short_chosen):
            if answer(pair.chosen, turn) != answer(short, 0):
                return (
                    f"{datasets[dataset].prefix}: the chosen answer of turn {turn + 1} of document {pair.document_id} is other "
                    "tokens in the short chat than in the long one; leave it out: --loss-type sft-s2l compares token by token"
                )
    raise AssertionError("the answers differ in order alone")
