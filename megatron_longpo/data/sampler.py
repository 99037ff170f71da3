"""The order in which a run sees pairs: one global stream, and each rank's share of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from megatron_longpo.data.shuffle import Shuffle, shuffled
from megatron_longpo.utils.errors import UserError

SHUFFLE_STREAM = 1
"""First word of the random key; see `megatron_longpo.data.split.SPLIT_STREAM`."""

Entry = tuple[int, int]
"""Which dataset, and which of its samples."""


class PreferenceStream:
    """An endless order of samples of several datasets; entry ``i`` is a function of sizes, weights, seed and ``i`` alone.

    Mixing: draw ``j`` of a dataset with share ``w`` stands at time ``(j + 1/2) / w``, and the stream is all draws in order of
    time (ties go to the first dataset). Of any first ``i`` entries a dataset has ``i * w``, give or take one (give or take
    ``1/2 + w * datasets / 2`` where there are more than three). Shuffling: each dataset has an order of its own for each of
    its epochs.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        """Describe the stream.

        Args:
            sizes: samples of each dataset.
            weights: relative share of each dataset; None: its size.
            seed: of the shuffles.

        Raises:
            UserError: no dataset, an empty one, or a weight that is not positive.
        """
        weights = list(sizes) if weights is None else weights
        if not sizes or len(sizes) != len(weights) or min(sizes) < 1:
            raise UserError(
                f"the data mixture needs non-empty datasets, one weight each; found sizes {list(sizes)}, weights {list(weights)}"
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(
                f"the weights of the data mixture must be positive, found {list(weights)}; leave out what is not wanted"
            )
        self.sizes = tuple(int(size) for size in sizes)
        self.weights = tuple(float(weight) for weight in weights)
        self.seed = seed
        # Whole numbers in the weights' proportion: the order is then exact however long the stream grows.
        fractions = [Fraction(str(weight)) for weight in self.weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        self._shares = [int(fraction * scale) for fraction in fractions]
        self._order_of: dict[int, tuple[int, Shuffle | np.ndarray]] = {}

    def entry(self, index: int) -> Entry:
        """Dataset and sample of entry ``index``."""
        dataset, draw = self.draw(index)
        epoch, position = divmod(draw, self.sizes[dataset])
        return dataset, int(self._order(dataset, epoch)[position])

    def draw(self, index: int) -> tuple[int, int]:
        """Dataset of entry ``index``, and how many entries before it are of the same dataset."""
        # At time t every dataset has had share * t draws, give or take a half. So at the time of entry `index - datasets`
        # at most `index` entries have passed, and at most 3/2 times `datasets` remain to be counted one by one.
        total = sum(self._shares)
        start = max(0, index - len(self._shares))
        draws = [self._draws_before(share, start, total) for share in self._shares]
        for _ in range(index - sum(draws)):
            draws[self._next(draws)] += 1
        dataset = self._next(draws)
        return dataset, draws[dataset]

    @staticmethod
    def _draws_before(share: int, time: int, total: int) -> int:
        """Number of ``j >= 0`` with ``(2 j + 1) / (2 share) < time / total``."""
        return (max(2 * share * time - 1, 0) // total + 1) // 2

    def _next(self, draws: Sequence[int]) -> int:
        """The dataset whose next draw comes first."""
        return min(range(len(draws)), key=lambda k: (Fraction(2 * draws[k] + 1, self._shares[k]), k))

    def _order(self, dataset: int, epoch: int) -> Shuffle | np.ndarray:
        """The shuffle of a dataset's epoch; the latest one of each dataset is kept."""
        if dataset not in self._order_of or self._order_of[dataset][0] != epoch:
            order = shuffled(self.sizes[dataset], (SHUFFLE_STREAM, self.seed, dataset, epoch))
            self._order_of[dataset] = (epoch, order)
        return self._order_of[dataset][1]

    def identity(self) -> dict[str, Any]:
        """What decides the order, for a checkpoint."""
        return {"sizes": list(self.sizes), "weights": list(self.weights), "seed": self.seed}


def total_samples(num_samples: float, global_batch_size: int, drop_last: bool = True) -> int:
    """Length of a training in whole global batches.

    Args:
        num_samples: pairs asked for: ``--train-samples``, or ``--num-epochs`` times the pairs of the training split.
        global_batch_size: pairs in one iteration.
        drop_last: leave out the last incomplete batch; else the next epoch fills it.

    Raises:
        UserError: not even one batch.
    """
    batches = num_samples / global_batch_size
    whole = math.floor(batches) if drop_last else math.ceil(batches)
    if whole < 1:
        raise UserError(
            f"{num_samples:g} pairs do not fill one --global-batch-size of {global_batch_size}; lower it, or use --no-drop-last"
        )
    return whole * global_batch_size


class PreferenceBatchSampler:
    """One data-parallel rank's micro-batches, in order.

    Global batch ``g`` of a run that starts with ``consumed_samples = c`` is entries ``c + g * B`` to ``c + (g + 1) * B`` of the
    stream (``B`` the global batch size), in every layout; micro-batch ``m`` of rank ``r`` is its entries from
    ``(m * data_parallel_size + r) * micro_batch_size`` on. ``consumed_samples`` may be any number that an earlier run has
    reached, also under another batch size or layout.

    Attributes:
        consumed_samples: pairs of all whole global batches handed out. A loop that fetches ahead keeps its own count.
        total_samples: where the stream ends; an incomplete last batch is left out.
    """

    def __init__(
        self,
        stream: PreferenceStream,
        global_batch_size: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        consumed_samples: int,
        total_samples: int,
    ) -> None:
        """Describe the share.

        Raises:
            UserError: the global batch is not a whole number of micro-batches a rank, or more is consumed than there is.
        """
        per_round = micro_batch_size * data_parallel_size
        if min(global_batch_size, micro_batch_size, data_parallel_size) < 1:
            raise UserError("--global-batch-size and --micro-batch-size must be at least 1")
        if global_batch_size % per_round:
            raise UserError(
                f"--global-batch-size {global_batch_size} must be a multiple of --micro-batch-size {micro_batch_size} times the "
                f"data-parallel size {data_parallel_size}; the next one is {-(-global_batch_size // per_round) * per_round}"
            )
        if not 0 <= data_parallel_rank < data_parallel_size:
            raise ValueError(f"data-parallel rank {data_parallel_rank} of {data_parallel_size}")
        if not 0 <= consumed_samples <= total_samples:
            raise UserError(
                f"{consumed_samples} pairs are consumed already, the training ends at {total_samples}; make it longer"
            )
        self.stream = stream
        self.consumed_samples = consumed_samples
        self.total_samples = total_samples
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank = data_parallel_rank
        self._per_round = per_round

    def __len__(self) -> int:
        """Micro-batches that are left."""
        batches = (self.total_samples - self.consumed_samples) // self._global_batch_size
        return batches * (self._global_batch_size // self._per_round)

    def __iter__(self) -> Iterator[list[Entry]]:
        """This rank's micro-batches from ``consumed_samples`` on."""
        while self.consumed_samples + self._global_batch_size <= self.total_samples:
            first = self.consumed_samples
            last = first + self._global_batch_size
            for start in range(first + self._rank * self._micro_batch_size, last, self._per_round):
                if start + self._per_round >= last:
                    self.consumed_samples = last
                yield [self.stream.entry(i) for i in range(start, start + self._micro_batch_size)]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"consumed_samples": self.consumed_samples, "stream": self.stream.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another sampler's state, in any layout.

        Raises:
            UserError: the stream is another one, or ended before that point.
        """
        mine = self.stream.identity()
        for name, value in state["stream"].items():
            if mine[name] != value:
                raise UserError(f"the data order cannot be resumed: {name} was {value}, now it is {mine[name]}")
        if state["consumed_samples"] > self.total_samples:
            raise UserError(f"{state['consumed_samples']} pairs are consumed already, the training ends at {self.total_samples}")
        self.consumed_samples = int(state["consumed_samples"])
