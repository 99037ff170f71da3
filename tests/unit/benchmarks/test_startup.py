"""What a run does before its first batch does not grow with the dataset."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import Scale
from benchmarks.jobs import Bench
from benchmarks.startup import ARCHITECTURE, FINGERPRINT, contest, make_dataset
from megatron_longpo.config.schema import DataConfig
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.indexed import IndexedPairs
from megatron_longpo.data.inspection import find_problems
from megatron_longpo.reference.cache import ReferenceCache
from megatron_longpo.training.data import RunData, open_data

COUNT = 100_000


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = str(tmp_path_factory.mktemp("startup") / "pairs")
    make_dataset(made, COUNT)
    return made


def opened(prefix: str, split: str = "100,0") -> RunData:
    return open_data(DataConfig(data_path=(prefix,), split=split), 42, ARCHITECTURE)


def test_the_made_up_dataset_is_sound(tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "few"), 40)
    dataset = PreferenceDataset(str(tmp_path / "few"))
    assert list(find_problems(dataset, None)) == []
    assert [dataset.document_id(index) for index in (0, 1, 39)] == ["0000000000", "0000000001", "0000000039"]
    assert len({dataset.lengths(index) for index in range(40)}) == 4
    cache = ReferenceCache.load(dataset.prefix, FINGERPRINT)
    assert len(cache) == 40
    assert cache.pair_logps(7).shape == (1, 2)


def test_opening_reads_no_pair(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a pair was read")

    monkeypatch.setattr(IndexedPairs, "sequence", refuse)
    monkeypatch.setattr(IndexedPairs, "sequences", refuse)
    data = opened(prefix, "99,1")
    assert (len(data.train_indices[0]), len(data.validation)) == (COUNT * 99 // 100, COUNT // 100)
    data.samples([data.stream.entry(place) for place in range(8)])
    with pytest.raises(AssertionError, match="a pair was read"):
        data.datasets[0].lengths(0)


def test_opening_and_ordering_hold_nothing_for_each_pair(prefix: str) -> None:
    """A single byte a pair would be 100,000."""
    opened(prefix)  # what is imported late
    tracemalloc.start()
    data = opened(prefix)
    cache = ReferenceCache.load(prefix, FINGERPRINT)
    samples = data.samples([data.stream.entry(place) for place in range(64)])
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({cache.pair_logps(index)[0, 0] for _, index in samples}) == 64
    assert held < 60_000
    assert peak < 200_000


def test_the_manifest_does_not_grow_with_the_pairs(prefix: str, tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "few"), 40)
    few, many = (Path(f"{name}.json").stat().st_size for name in (tmp_path / "few", prefix))
    assert many < few + 100


@pytest.mark.slow
def test_the_contest_measures_a_first_batch(tmp_path: Path) -> None:
    speed, memory = contest(Bench(tmp_path), Scale(startup=40_000))
    assert 0 < speed.ours < 30
    assert memory.ours > 0.01
    kept = json.loads((tmp_path / "measurements" / "startup-40000.json").read_text())["results"][0]
    assert kept["seconds"] == speed.ours
