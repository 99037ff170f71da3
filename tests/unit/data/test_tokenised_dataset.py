from megatron_longpo.data.dataset import PreferenceDataset
from tests.support.make_data import make_dataset


def test_a_pair_outlives_its_dataset(tmp_path):
    make_dataset(tmp_path / "pairs")
    pair = PreferenceDataset(str(tmp_path / "pairs"))[0]  # the dataset, and Megatron's memory map, are gone here
    assert pair.chosen.input_ids.sum() > 0
