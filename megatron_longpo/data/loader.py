"""Micro-batches on the ranks that need them: packed once a tensor-parallel group, broadcast, sliced for context parallelism."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from megatron_longpo.data.batch import PreferenceBatch, RankBatch
from megatron_longpo.data.packing import PackingOptions, PackItem, pack_pairs
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.parallel.collectives import broadcast_from_first
from megatron_longpo.parallel.state import ParallelState

SampleId = tuple[int, int]
"""(dataset, index) of a pair."""


class PairDataset(Protocol):
    """A dataset of pairs."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> PreferencePair:
        """One pair."""
        ...


class ReferenceSource(Protocol):
    """Reference log-probs by sample."""

    def logps(self, sample: SampleId) -> np.ndarray:
        """Float64 log-probs of (chosen, rejected): ``[t, 2]``, or in several contexts beside each other, see `PackItem`."""
        ...


def rank_batch(items: Sequence[PackItem] | None, options: PackingOptions, state: ParallelState) -> RankBatch:
    """Pack on the first tensor-parallel rank and give every rank its rows, on its device.

    Args:
        items: the micro-batch; needed on the first rank of the tensor group only.
        options: packing options.
        state: groups.

    Parallel: broadcasts over the tensor group.
    """
    device = cpu_backend.device()
    batch = None if items is None else pack_pairs(items, options)
    tensors = broadcast_from_first(None if batch is None else batch.to_tensors(), state.tp_group, device)
    return PreferenceBatch.from_tensors(tensors).slice_context(state.cp_group.size(), state.cp_group.rank())


def rank_batches(
    micro_batches: Iterable[Sequence[SampleId]],
    datasets: Sequence[PairDataset],
    reference: ReferenceSource | None,
    options: PackingOptions,
    state: ParallelState,
) -> Iterator[RankBatch]:
    """Turn this data-parallel rank's micro-batches of samples into packed batches.

    Parallel: as `rank_batch`, once a micro-batch.
    """
    for samples in micro_batches:
        items = None
        if state.tp_group.rank() == 0:
            items = [
                PackItem(datasets[dataset][index], reference.logps((dataset, index)) if reference else None, (dataset, index))
                for dataset, index in samples
            ]
        yield rank_batch(items, options, state)


class JoinedReference:
    """Log-probs in several contexts, beside each other."""

    def __init__(self, contexts: Sequence[ReferenceSource]) -> None:
        """Take one source a context, in order."""
        self._contexts = contexts

    def logps(self, sample: SampleId) -> np.ndarray:
        """See `ReferenceSource`."""
        return np.concatenate([source.logps(sample) for source in self._contexts], axis=1)


class ComputedReference:
    """Reference log-probs held in memory, by sample: what a live reference fills before each iteration."""

    def __init__(self, logps: Mapping[SampleId, np.ndarray]) -> None:
        """Take the log-probs by sample."""
        self._logps = logps

    def logps(self, sample: SampleId) -> np.ndarray:
        """See `ReferenceSource`."""
        return self._logps[sample]
