"""Packing pairs up to a budget, with work divided over ranks, is the same training as one pair at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.config.schema import RunConfig
from tests.distributed.test_layout_parity import Straight, assert_same_training, config_for, train_straight
from tests.support.launch import Nursery
from tests.support.layouts import Layout, train_and_dump
from tests.support.scenario import Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

PAIRS = {"global_batch_size": 8, "seq_length": 8192}
BUDGET = 3000
"""Rows: less than the longest pair has, more than twice what the shorter ones have."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Scenario:
    """Nine pairs whose long sides differ by a factor of ten."""
    scenario = make_scenario(
        tmp_path_factory.mktemp("uneven"), num_documents=9, num_turns=1, num_words=(20, 400, 50), max_position_embeddings=8192
    )
    workers.run(1, fill_reference, scenario)
    return scenario


@pytest.fixture(scope="module")
def straight(uneven: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """One pair a micro-batch."""
    return train_straight(uneven, workers, tmp_path_factory, **PAIRS)


def packed(scenario: Scenario, layout: Layout, tokens: int = BUDGET) -> RunConfig:
    return config_for(scenario, layout, **PAIRS, micro_batch_tokens=tokens)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(dp=2),
        Layout(pp=2),
        Layout(cp=2, exchange="all_gather"),
        Layout(cp=2, exchange="p2p"),
        Layout(pp=2, cp=2, exchange="a2a"),
        Layout(cp=2, dp=2, exchange="p2p"),
        Layout(tp=2, sp=True),
        Layout(pp=2, vpp_layers=1),
    ],
    ids=str,
)
def test_packed_training_is_unpacked_training(
    layout: Layout, uneven: Scenario, straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    found = workers.run(layout.world_size, train_and_dump, packed(uneven, layout), str(tmp_path), 3)
    assert_same_training(straight, found, tmp_path)


def rows_seen(config: RunConfig, folder: str) -> tuple[list[int], list[int]]:
    """Rows that attention has on this rank in one iteration, and those that the pairs of each micro-batch need (in a worker)."""
    from megatron_longpo.data import loader
    from megatron_longpo.data.layout import shared_prefix_length
    from megatron_longpo.models.attention import PackedCoreAttention

    usual, usual_pack, seen, own = PackedCoreAttention.forward, loader.pack_pairs, [], []

    def attend(self: Any, query: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(query.size(0))
        return usual(self, query, *arguments, **keywords)

    def pack(items: Any, options: Any) -> Any:
        sides = [(item.pair.chosen.input_ids, item.pair.rejected.input_ids) for item in items]
        own.append(sum(len(one) + len(other) - shared_prefix_length(one, other) + 1 for one, other in sides))
        return usual_pack(items, options)

    PackedCoreAttention.forward, loader.pack_pairs = attend, pack  # type: ignore[method-assign]
    try:
        train_and_dump(config, folder, 1)
    finally:
        PackedCoreAttention.forward, loader.pack_pairs = usual, usual_pack  # type: ignore[method-assign]
    return seen, own


@pytest.mark.parametrize("tokens", [None, BUDGET])
@pytest.mark.parametrize("layout", [Layout(pp=2), Layout(pp=2, vpp_layers=1)], ids=str)
def test_pipeline_stages_pad_no_micro_batch_to_another_s_length(
    layout: Layout, tokens: int | None, uneven: Scenario, workers: Workers, tmp_path: Path
) -> None:
    config = config_for(uneven, layout, **PAIRS, micro_batch_tokens=tokens)
    for seen, own in workers.run(2, rows_seen, config, str(tmp_path)):
        assert sorted(seen) == sorted(2 * own)  # two layers on each stage
        assert len(set(own)) > 1, "the micro-batches are of one length: nothing could be padded"


def test_ranks_share_the_work_and_the_balance_is_told(uneven: Scenario, tmp_path: Path) -> None:
    nursery = Nursery(tmp_path)
    try:
        lines = {}
        for name, flags in {"packed": ("--micro-batch-tokens", BUDGET), "one": ("--micro-batch-size", 1)}.items():
            metrics = tmp_path / f"{name}.jsonl"
            inputs = ("--pretrained-checkpoint", uneven.native, "--data-path", uneven.prefix, "--metrics-file", metrics)
            length = ("--train-iters", 2, "--global-batch-size", 8, "--seq-length", 8192)
            validation = ("--split", "6,3", "--eval-interval", 2)
            nursery.start("pretrain_longpo.py", [*inputs, *length, *validation, *flags], 2).succeed()
            lines[name] = [json.loads(line) for line in metrics.read_text().splitlines()]
    finally:
        nursery.close()
    for packed_line, line in zip(lines["packed"], lines["one"], strict=True):
        assert "work_balance" not in line
        assert 1 <= packed_line["work_balance"] < 1.6, "with few pairs the longest one decides; 2 would be all work on one rank"
        assert 1 <= packed_line["micro_batches"] < 4
        assert packed_line["loss"] == pytest.approx(line["loss"], rel=1e-5)
    assert lines["packed"][1]["validation/loss"] == pytest.approx(lines["one"][1]["validation/loss"], rel=1e-5)
