"""Layers of Transformer Engine's modules load the same checkpoints as ours and train alike, as far as stand-ins can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.config.schema import RunConfig
from tests.distributed.test_layout_parity import Straight, assert_same_training, config_for
from tests.support.engine_stand_ins import transformer_engine
from tests.support.layouts import Layout, train_and_dump
from tests.support.scenario import Scenario
from tests.support.workers import Workers


def train_with_transformer_engine(config: RunConfig, folder: str, iterations: int) -> dict[str, Any]:
    with transformer_engine():
        return train_and_dump(config, folder, iterations)


@pytest.mark.parametrize(
    ("family", "layout", "changes"),
    [
        ("llama", Layout(), {}),
        ("llama", Layout(tp=2, sp=True), {}),
        ("qwen3", Layout(), {}),
        ("llama", Layout(), {"attention_backend": "te", "prefix_sharing": False}),
        ("llama", Layout(), {"lora_rank": 4, "lora_alpha": 8.0}),
    ],
    ids=["llama", "tp2-sp", "qk-norms", "attention", "lora"],
)
def test_layers_of_transformer_engine_s_modules_train_as_ours(
    family: str, layout: Layout, changes: dict[str, Any], request: pytest.FixtureRequest, workers: Workers, tmp_path: Path
) -> None:
    scenario: Scenario = request.getfixturevalue(family)
    ours = config_for(scenario, Layout(), **{**changes, "attention_backend": "auto"})
    one = Straight(tmp_path / "ours", workers.run(1, train_and_dump, ours, str(tmp_path / "ours"), 2)[0]["metrics"])
    theirs = config_for(scenario, layout, **changes)
    found = workers.run(layout.world_size, train_with_transformer_engine, theirs, str(tmp_path / "theirs"), 2)
    assert_same_training(one, found, tmp_path / "theirs")
