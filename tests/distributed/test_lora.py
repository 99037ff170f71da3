"""Training adapters: the same loss, gradients and adapters in every layout, over a base that does not move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_layout_parity import TOLERANCE, assert_same_metrics, assert_same_tensors, config_for
from tests.support.layouts import Layout, train_and_dump
from tests.support.scenario import Scenario
from tests.support.workers import Workers

LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0}
LAYOUTS = [
    Layout(tp=2),
    Layout(tp=2, sp=True),
    Layout(pp=2),
    Layout(cp=2),
    Layout(dp=2),
    Layout(pp=2, vpp_layers=1),
    Layout(tp=2, sp=True, pp=2),
]


@pytest.fixture(scope="module")
def straight(llama: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """Three iterations in one process."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, workers.run(1, train_and_dump, config_for(llama, Layout(), **LORA), str(folder), 3)[0]["metrics"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_loss_gradients_and_adapters_do_not_depend_on_the_layout(
    layout: Layout, llama: Scenario, straight: tuple[Path, list[dict[str, float]]], workers: Workers, tmp_path: Path
) -> None:
    folder, expected = straight
    found = workers.run(layout.world_size, train_and_dump, config_for(llama, layout, **LORA), str(tmp_path), 3)
    for metrics in found:
        assert_same_metrics(expected, metrics["metrics"])
    assert_same_tensors(folder / "gradients", tmp_path / "gradients", TOLERANCE)
    assert_same_tensors(folder / "weights", tmp_path / "weights", TOLERANCE)
