"""The pairs of a run: datasets, split, order, and how long the training is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_longpo.config.loss_types import traits_of
from megatron_longpo.config.schema import DataConfig, RunConfig
from megatron_longpo.config.validate import parse_number
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.loader import SampleId
from megatron_longpo.data.packing import PackingOptions, packed_size
from megatron_longpo.data.sampler import Entry, PreferenceStream, total_samples
from megatron_longpo.data.split import split_indices
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunData:
    """Datasets with their split.

    Attributes:
        datasets: in the order of ``--data-path``.
        stream: global order of the training pairs, over positions in the training split.
        train_indices: for each dataset, the indices of its training split.
        validation: held-out samples, dataset by dataset.
        max_turns: turns of the longest pair.
    """

    datasets: tuple[PreferenceDataset, ...]
    stream: PreferenceStream
    train_indices: tuple[Sequence[int], ...]
    validation: tuple[SampleId, ...]
    max_turns: int

    def samples(self, entries: Sequence[Entry]) -> tuple[SampleId, ...]:
        """Entries of the stream as samples of the datasets."""
        return tuple((dataset, self.train_indices[dataset][position]) for dataset, position in entries)


def parse_data_path(values: tuple[str, ...]) -> tuple[list[str], list[float] | None]:
    """Split ``--data-path`` into prefixes and weights; weights are all given or all absent."""
    if len(values) >= 2 and parse_number(values[0]) is not None:
        return list(values[1::2]), [float(value) for value in values[0::2]]
    return list(values), None


def open_data(config: DataConfig, seed: int, architecture: ModelArchitecture) -> RunData:
    """Open the datasets of a run and fix their order.

    Raises:
        UserError: if a dataset is not whole, holds a word that the model does not have, or was made for longer sequences.
    """
    prefixes, weights = parse_data_path(config.data_path)
    datasets = tuple(PreferenceDataset(prefix) for prefix in prefixes)
    for dataset in datasets:
        _check_fit(dataset, config, architecture)
    splits = [split_indices(len(dataset), config.split, seed) for dataset in datasets]
    return RunData(
        datasets,
        PreferenceStream([len(train) for train, _ in splits], weights, seed),
        tuple(train for train, _ in splits),
        tuple((number, int(index)) for number, (_, held_out) in enumerate(splits) for index in held_out),
        max(dataset.manifest.max_turns for dataset in datasets),
    )


def _check_fit(dataset: PreferenceDataset, config: DataConfig, architecture: ModelArchitecture) -> None:
    if dataset.manifest.max_token_id >= architecture.vocab_size:
        raise UserError(
            f"{dataset.prefix}: holds token {dataset.manifest.max_token_id}, the model's vocabulary has "
            f"{architecture.vocab_size}; preprocess with the model's own tokenizer"
        )
    lengths = dataset.manifest.lengths  # of an empty dataset: none; the stream refuses it
    if all(lengths[side]["maximum"] <= config.seq_length for side in ("chosen", "rejected") if side in lengths):
        return
    for index in range(len(dataset)):
        longest = max(dataset.lengths(index))
        if longest > config.seq_length:
            raise UserError(
                f"{dataset.prefix}: pair {index} ({dataset.document_id(index)}) has a side of {longest} tokens, more than "
                f"--seq-length {config.seq_length}; raise it, or preprocess with that limit"
            )


def packing_options(config: RunConfig, state: ParallelState) -> PackingOptions:
    """Which rows the objective needs, padded for a layout."""
    return dataclasses.replace(needed_rows(config), multiple=state.sequence_multiple)


def needed_rows(config: RunConfig) -> PackingOptions:
    """Which rows the objective needs, without padding."""
    traits = traits_of(config.objective)
    return PackingOptions(
        prefix_sharing=config.data.prefix_sharing,
        nll_scope=config.objective.nll_scope if config.objective.nll_weight else None,
        with_rejected=traits is not None and traits.rejected,
        with_short=traits is not None and traits.short,
    )


def pair_size(data: RunData, sample: SampleId, options: PackingOptions) -> tuple[int, int]:
    """`packed_size` of a pair, from the index and, where short chats are wanted, from their tokens."""
    dataset, index = data.datasets[sample[0]], sample[1]
    lengths = (*dataset.lengths(index), dataset.shared_prefix_length(index))
    return packed_size(lengths, options, dataset.short_lengths(index) if options.with_short else ())


def total_train_samples(config: RunConfig, data: RunData) -> int:
    """Pairs of the whole training, a multiple of the global batch size."""
    training = config.training
    if training.train_iters is not None:
        return training.train_iters * training.global_batch_size
    if training.train_samples is not None:
        return total_samples(training.train_samples, training.global_batch_size, drop_last=True)
    assert training.num_epochs is not None
    pairs = sum(len(indices) for indices in data.train_indices)
    return total_samples(training.num_epochs * pairs, training.global_batch_size, drop_last=config.data.drop_last)
