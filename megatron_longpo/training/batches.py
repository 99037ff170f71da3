"""Which pairs each iteration gives to this data-parallel rank, and which of them share a micro-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.data.batch_planning import PairSize, pack_in_order, plan_batch
from megatron_longpo.data.loader import SampleId
from megatron_longpo.data.packing import PackingOptions
from megatron_longpo.data.sampler import PreferenceBatchSampler
from megatron_longpo.models.flops import StepFlops
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.training.data import RunData, packing_options, pair_size


@dataclasses.dataclass(frozen=True)
class Share:
    """One data-parallel rank's part of a global batch.

    Attributes:
        micro_batches: of samples; every rank has the same number of them.
        balance: work of the busiest rank over the mean, where the batch was planned by work; else None.
    """

    micro_batches: tuple[tuple[SampleId, ...], ...]
    balance: float | None = None


def shares(
    config: RunConfig, data: RunData, flops: StepFlops, state: ParallelState, consumed: int, until: int
) -> Iterator[Share]:
    """This rank's part of each global batch between two numbers of consumed pairs.

    Which pairs an iteration has depends on neither layout nor micro-batches. With ``--micro-batch-tokens`` its pairs are
    planned by work; the index and the header of each pair are read for that, on every rank.
    """
    rank, ranks = state.dp_group.rank(), state.dp_group.size()
    batch_size, training = config.training.global_batch_size, config.training
    if training.micro_batch_tokens is None:
        size = training.micro_batch_size or 1
        micro_batches = iter(PreferenceBatchSampler(data.stream, batch_size, size, rank, ranks, consumed, until))
        for first in micro_batches:
            others = (next(micro_batches) for _ in range(batch_size // (size * ranks) - 1))
            yield Share(tuple(data.samples(entries) for entries in (first, *others)))
        return
    options = packing_options(config, state)
    stages = state.pp_group.size() if config.parallel.num_layers_per_virtual_pipeline_stage is not None else 1
    for entries in PreferenceBatchSampler(data.stream, batch_size, batch_size, 0, 1, consumed, until):
        samples = data.samples(entries)
        pairs = [_pair_size(data, sample, options, flops) for sample in samples]
        plan = plan_batch(pairs, ranks, _whole_rows(training.micro_batch_tokens, options), stages)
        yield Share(tuple(tuple(samples[index] for index in positions) for positions in plan.ranks[rank]), plan.balance)


def micro_batches_in_order(
    samples: Sequence[SampleId], config: RunConfig, data: RunData, options: PackingOptions
) -> list[tuple[SampleId, ...]]:
    """Divide one rank's samples into micro-batches as they come, for a pass without an update."""
    tokens, size = config.training.micro_batch_tokens, config.training.micro_batch_size or 1
    if tokens is None:
        return [tuple(samples[start : start + size]) for start in range(0, len(samples), size)]
    rows = [pair_size(data, sample, options)[0] for sample in samples]
    return [tuple(samples[index] for index in positions) for positions in pack_in_order(rows, _whole_rows(tokens, options))]


def _whole_rows(tokens: int, options: PackingOptions) -> int:
    """Rows that fit into a budget together with the padding at the end."""
    return tokens // options.multiple * options.multiple


def _pair_size(data: RunData, sample: SampleId, options: PackingOptions, flops: StepFlops) -> PairSize:
    rows, score_pairs = pair_size(data, sample, options)
    return PairSize(rows, flops.step(rows, score_pairs))
