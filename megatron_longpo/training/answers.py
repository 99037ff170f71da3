"""Whether a model would give right answers, without generating any: one forward pass over prompts with their answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.data.answer_packing import AnswerItem, RankAnswers, pack_answers
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.parallel.collectives import gather_objects, reduce_sum
from megatron_longpo.parallel.pipeline import run_schedule
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.training.validation import in_evaluation_mode
from megatron_longpo.utils.progress import progress_bar

_MICRO_BATCHES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """What a model makes of a prompt's right answers.

    Attributes:
        solved: whether greedy decoding would begin with exactly one of them.
        nll: mean negative log-prob of a token, of the answer where it is lowest.
    """

    solved: bool
    nll: float


def score_answers(
    model: Sequence[LogProbGPTModel], items: Sequence[AnswerItem], max_rows: int, state: ParallelState, *, progress: bool = False
) -> list[AnswerScore]:
    """Score this data-parallel rank's items.

    Args:
        model: this rank's model chunks, not wrapped.
        items: the same on all ranks that share them; may be none.
        max_rows: rows of a micro-batch.
        state: groups.
        progress: show a bar, of rows.

    Returns:
        A score for each item, on every pipeline stage.

    Parallel: the pipeline schedule; the tensor and context groups; then an all-gather over the pipeline group.
    """
    device, cp_group = cpu_backend.device(), state.cp_group
    batches = [
        batch.slice_context(cp_group.size(), cp_group.rank(), device)
        for batch in pack_answers(items, max_rows, state.sequence_multiple)
    ]
    sums: list[Tensor] = []
    rows = sum(batch.packed.length for batch in batches)
    with (
        in_evaluation_mode(model),
        progress_bar(total=rows, desc="eval tasks", unit="row", leave=False, shown=progress) as bar,
    ):
        for start in range(0, len(batches), _MICRO_BATCHES_AT_ONCE):
            part = batches[start : start + _MICRO_BATCHES_AT_ONCE]
            found = gather_objects(_answer_sums(model, part, state), state.pp_group)
            sums += next(stage for stage in found if stage)
            bar.update(sum(batch.packed.length for batch in part))
    answers = iter(torch.cat(sums).tolist() if sums else ())
    return [_score_item(item, answers) for item in items]


def _score_item(item: AnswerItem, sums: Iterator[tuple[float, float]]) -> AnswerScore:
    scored = [(len(answer), *next(sums)) for answer in item.answers]
    return AnswerScore(
        solved=any(chosen == length for length, _, chosen in scored),
        nll=min(-log_prob / length for length, log_prob, _ in scored),
    )


def _answer_sums(model: Sequence[LogProbGPTModel], batches: Sequence[RankAnswers], state: ParallelState) -> list[Tensor]:
    """Log-prob of each answer, and how many of its tokens greedy decoding would choose: ``[a, 2]`` a batch, on the last stage."""

    def forward(iterator: Iterator[RankAnswers], chunk: torch.nn.Module) -> tuple[Tensor, functools.partial]:
        batch = next(iterator)
        return chunk(batch.packed, states_alone=True), functools.partial(keep, batch)

    def keep(batch: RankAnswers, states: Tensor) -> tuple[Tensor, dict[str, Any]]:
        log_probs, chosen = model[-1].choices(states, batch.packed.labels)
        held = batch.owner >= 0
        scores = torch.stack([log_probs.double(), chosen.double()], dim=-1)
        partial = scores.new_zeros(batch.num_answers, 2).index_add(0, batch.owner[held], scores[held])
        return states.new_zeros(()), {"sums": reduce_sum(partial, state.cp_group).cpu()}

    return [report["sums"] for report in run_schedule(forward, model, batches, forward_only=True)]
