"""What a run is said to need is what it packs, whatever its objective reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest

from megatron_longpo.config.schema import LossType, ObjectiveConfig, RunConfig
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.packing import PackItem, pack_pairs
from megatron_longpo.training.data import needed_rows, pair_size
from megatron_longpo.training.dry_run import longest_pair
from tests.support.make_data import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreferenceDataset:
    return make_dataset(tmp_path_factory.mktemp("rows") / "pairs", num_documents=3, num_words=(40, 80, 60))


@pytest.mark.parametrize("loss_type", [*get_args(LossType), None])
def test_rows_are_counted_as_they_are_packed(loss_type: LossType | None, dataset: PreferenceDataset) -> None:
    objective = ObjectiveConfig(preference_weight=0.0) if loss_type is None else ObjectiveConfig(loss_type=loss_type)
    options, data = needed_rows(RunConfig(objective=objective)), SimpleNamespace(datasets=(dataset,))
    packed = [pack_pairs([PackItem(dataset[index])], options).length for index in range(3)]
    assert [pair_size(data, (0, index), options)[0] for index in range(3)] == packed
    assert longest_pair(data, options).rows == max(packed)


def test_a_rejected_long_answer_is_encoded_only_where_it_is_read(dataset: PreferenceDataset) -> None:
    def rows(loss_type: LossType) -> tuple[int, bool]:
        batch = pack_pairs([PackItem(dataset[0])], needed_rows(RunConfig(objective=ObjectiveConfig(loss_type=loss_type))))
        return batch.length, bool(batch.answer_tokens[..., 1].any())

    chosen = len(dataset[0].chosen.input_ids)
    assert rows("sft-s2l") == (chosen, False)
    short = sum(batch_rows(*lengths) for lengths in dataset.short_lengths(0))
    assert rows("solo-dpo") == (chosen + short, False)
    assert rows("sigmoid")[1]


def batch_rows(chosen: int, rejected: int, shared: int) -> int:
    """Two chats with their start encoded once, and the copy of its last token."""
    return chosen + rejected - shared + 1
