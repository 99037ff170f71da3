"""Log-prob sums of a model over packed batches: what the objective, the reference cache and validation are all made of."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_longpo.data.batch import RankBatch
from megatron_longpo.losses.objective import PolicySums
from megatron_longpo.parallel.collectives import ProcessGroup, gather_objects, sum_over_context
from megatron_longpo.parallel.pipeline import run_schedule
from megatron_longpo.parallel.state import ParallelState


def policy_sums(log_probs: Tensor, batch: RankBatch, cp_group: ProcessGroup) -> PolicySums:
    """Sum a rank's per-row log-probs by pair and turn, then over the context group.

    Args:
        log_probs: ``[s/cp]`` of this rank's rows, or ``[2, s/cp]`` with their divergences from a teacher.
        batch: this rank's rows.
        cp_group: context-parallel group.

    Returns:
        Complete sums in float64; gradients flow to this rank's rows only.

    Parallel: one all-reduce of ``p + 4pt`` numbers (``p + 6pt`` with a teacher) over the context group; backward is local.
    """
    pairs, turns = batch.whole.turn_mask.shape
    logps, *divergences = log_probs.double().view(-1, batch.chosen_turn.size(0))
    by_turn = 2 * pairs * turns
    maps = [(logps, batch.nll_pair, pairs), (logps, batch.chosen_turn, by_turn), (logps, batch.rejected_turn, by_turn)]
    maps += [(divergence, batch.chosen_turn, by_turn) for divergence in divergences]
    partial = torch.cat([_segment_sum(*each) for each in maps])
    nll, chosen, rejected, *taught = sum_over_context(partial, cp_group).split([count for *_, count in maps])
    long, short = torch.stack([chosen, rejected], dim=-1).view(2, pairs, turns, 2).unbind()
    return PolicySums(nll, long, short, taught[0].view(2, pairs, turns)[0] if taught else None)


def _segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    counted = segments >= 0
    return values.new_zeros(count).index_add(0, segments[counted], values[counted])


def score_batches(model: Sequence[torch.nn.Module], batches: Sequence[RankBatch], state: ParallelState) -> list[PolicySums]:
    """Forward-only pass over batches.

    Args:
        model: this rank's model chunks.
        batches: this data-parallel rank's micro-batches, at least one.
        state: groups.

    Returns:
        Each batch's sums, on the CPU, on every pipeline stage.

    Parallel: the pipeline schedule; then an all-gather of the sums over the pipeline group.
    """

    def forward(iterator: Iterator[RankBatch], chunk: torch.nn.Module) -> tuple[Tensor, functools.partial]:
        batch = next(iterator)
        return chunk(batch.packed), functools.partial(keep, batch)

    def keep(batch: RankBatch, log_probs: Tensor) -> tuple[Tensor, dict[str, PolicySums]]:
        return log_probs.new_zeros(()), {"sums": policy_sums(log_probs, batch, state.cp_group).cpu()}

    reported = run_schedule(forward, model, batches, forward_only=True)
    scored = [report["sums"] for report in reported]
    return next(found for found in gather_objects(scored, state.pp_group) if found)
