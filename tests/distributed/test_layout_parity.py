"""Loss, gradients and weights do not depend on the layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.layouts import Layout, read_dump, train_and_dump
from tests.support.scenario import Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

LAYOUTS = [
    Layout(tp=2),
    Layout(tp=2, sp=True),
    Layout(pp=2),
    Layout(cp=2, exchange="all_gather"),
    Layout(dp=2),
    Layout(dp=2, overlap=True),
    Layout(tp=2, cp=2, exchange="all_gather"),
    Layout(tp=2, sp=True, cp=2, exchange="all_gather"),
    Layout(tp=2, sp=True, pp=2),
    Layout(pp=2, cp=2, exchange="all_gather"),
    Layout(pp=2, dp=2),
    Layout(cp=2, dp=2, exchange="all_gather"),
    Layout(tp=2, dp=2),
    Layout(cp=4, exchange="all_gather"),
    Layout(pp=4),
    Layout(pp=2, vpp_layers=1),
    Layout(tp=2, sp=True, pp=2, vpp_layers=1),
    Layout(dp=4),
    Layout(cp=2, exchange="a2a"),
    Layout(cp=2, exchange="p2p"),
    Layout(cp=4, exchange="p2p"),
    Layout(cp=4, exchange="a2a+p2p", hierarchy=(2, 2)),
    Layout(tp=2, sp=True, cp=2, exchange="p2p"),
    Layout(pp=2, cp=2, exchange="a2a"),
    Layout(pp=2, cp=2, exchange="p2p"),
    Layout(cp=2, dp=2, exchange="p2p"),
]
WITHOUT_SHARING = [
    Layout(cp=2, exchange="all_gather"),
    Layout(cp=2, exchange="a2a"),
    Layout(cp=2, exchange="p2p"),
    Layout(cp=4, exchange="all_gather"),
    Layout(cp=4, exchange="p2p"),
    Layout(cp=4, exchange="a2a+p2p", hierarchy=(2, 2)),
    Layout(tp=2, sp=True, cp=2, exchange="all_gather"),
    Layout(tp=2, sp=True, cp=2, exchange="p2p"),
    Layout(pp=2, cp=2, exchange="all_gather"),
    Layout(pp=2, cp=2, exchange="a2a"),
    Layout(pp=2, cp=2, exchange="p2p"),
]
# beside another axis, trades inside rings need eight ranks: with two context ranks one of the two groups has one member
EIGHT_RANKS = [
    Layout(cp=8, exchange="all_gather"),
    Layout(cp=8, exchange="p2p"),
    Layout(cp=8, exchange="a2a+p2p", hierarchy=(2, 4)),
    Layout(pp=2, cp=4, exchange="a2a+p2p", hierarchy=(2, 2)),
]
# what two key/value heads cannot be dealt out to
TRADES_OF_MANY_HEADS = [
    Layout(cp=4, exchange="a2a"),
    Layout(tp=2, sp=True, cp=2, exchange="a2a"),
    pytest.param(Layout(cp=8, exchange="a2a"), marks=pytest.mark.slow),
    pytest.param(Layout(tp=2, sp=True, cp=4, exchange="a2a+p2p", hierarchy=(2, 2)), marks=pytest.mark.slow),
]
SHARING = pytest.mark.parametrize("prefix_sharing", [True, False], ids=["shared", "two-sequences"])
# fp32: different summation orders; the largest gradient of the scenario is of the order of 1
TOLERANCE = 1e-5


def config_for(scenario: Scenario, layout: Layout, **changes: Any) -> Any:
    return dataclasses.replace(scenario.config(**changes), parallel=layout.parallel())


@dataclasses.dataclass(frozen=True)
class Straight:
    """A training in one process: what it left, and its metrics."""

    folder: Path
    metrics: list[dict[str, float]]


def train_straight(
    scenario: Scenario, workers: Workers, folders: pytest.TempPathFactory, iterations: int = 3, **changes: Any
) -> Straight:
    folder, config = folders.mktemp("straight"), config_for(scenario, Layout(), **changes)
    return Straight(folder, workers.run(1, train_and_dump, config, str(folder), iterations)[0]["metrics"])


@pytest.fixture(scope="module")
def straight(llama: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return train_straight(llama, workers, tmp_path_factory)


def assert_same_tensors(one: Path, other: Path, tolerance: float) -> None:
    expected, found = read_dump(one), read_dump(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max().item()
        assert error <= tolerance, f"{name}: {error}"
        assert tensor.abs().max() > 0, f"{name} is zero: the comparison would say nothing"


def assert_same_metrics(expected: list[dict[str, float]], found: list[dict[str, float]], beta: float = 0.1) -> None:
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        size = abs(one["logps/chosen"]) + abs(one["logps/rejected"])
        for name, value in one.items():
            bound = beta * 1e-5 * size if "rewards/" in name or "kl/" in name else 1e-5 * max(abs(value), 1.0)
            assert other[name] == pytest.approx(value, abs=bound), name


def assert_same_training(straight: Straight, found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Metrics on every rank that is looked at, gradients of the first iteration, weights after the last."""
    for rank in found:
        assert_same_metrics(straight.metrics, rank["metrics"])
    for what in ("gradients", "weights"):
        assert_same_tensors(straight.folder / what, folder / what, TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_loss_gradients_and_weights_do_not_depend_on_the_layout(
    layout: Layout, llama: Scenario, straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    found = workers.run(layout.world_size, train_and_dump, config_for(llama, layout), str(tmp_path), 3)
    assert_same_training(straight, found, tmp_path)


@pytest.mark.parametrize("layout", WITHOUT_SHARING, ids=str)
def test_two_sequences_train_as_the_shared_prefix_does_in_every_exchange(
    layout: Layout, llama: Scenario, straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    config = config_for(llama, layout, prefix_sharing=False)
    assert_same_training(straight, workers.run(layout.world_size, train_and_dump, config, str(tmp_path), 3), tmp_path)


@pytest.mark.slow
@SHARING
@pytest.mark.parametrize("layout", EIGHT_RANKS, ids=str)
def test_eight_ranks_train_as_one(
    layout: Layout,
    prefix_sharing: bool,
    llama: Scenario,
    straight: Straight,
    workers: Workers,
    tmp_path: Path,
) -> None:
    config = config_for(llama, layout, prefix_sharing=prefix_sharing)
    assert_same_training(straight, workers.run(8, train_and_dump, config, str(tmp_path), 3), tmp_path)


@pytest.fixture(scope="module")
def many_heads(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, Straight]:
    """A model whose heads can be dealt out to eight ranks, and three iterations of it in one process."""
    # two layers, as no pipeline divides them: trades between eight ranks cost more than all else here
    shape = {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 2}
    scenario = make_scenario(tmp_path_factory.mktemp("many-heads"), **shape)
    workers.run(1, fill_reference, scenario)
    return scenario, train_straight(scenario, workers, tmp_path_factory)


@SHARING
@pytest.mark.parametrize("layout", TRADES_OF_MANY_HEADS, ids=str)
def test_many_heads_can_be_traded(
    layout: Layout,
    prefix_sharing: bool,
    many_heads: tuple[Scenario, Straight],
    workers: Workers,
    tmp_path: Path,
) -> None:
    scenario, one = many_heads
    config = config_for(scenario, layout, prefix_sharing=prefix_sharing)
    assert_same_training(one, workers.run(layout.world_size, train_and_dump, config, str(tmp_path), 3), tmp_path)


@pytest.fixture(scope="module")
def qwen3_straight(qwen3: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return train_straight(qwen3, workers, tmp_path_factory)


@pytest.mark.parametrize(
    "layout", [Layout(tp=2), Layout(tp=2, sp=True), Layout(pp=2), Layout(tp=2, sp=True, cp=2, exchange="all_gather")], ids=str
)
def test_qk_norms_and_tied_embeddings_train_alike_in_every_layout(
    layout: Layout, qwen3: Scenario, qwen3_straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    found = workers.run(layout.world_size, train_and_dump, config_for(qwen3, layout), str(tmp_path), 3)
    assert_same_training(qwen3_straight, found, tmp_path)


@pytest.fixture(scope="module", params=["adam", "rmsprop"])
def updates(
    request: pytest.FixtureRequest, llama: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Straight]:
    """An optimizer's settings, and three iterations with it in one process."""
    # a large epsilon: Adam would otherwise amplify the round-off of near-zero gradients to the size of the learning rate
    settings = {"optimizer": request.param, "lr": 1e-3, "adam_eps": 1e-3, "rmsprop_eps": 1e-3, "clip_grad": 1.0}
    return settings, train_straight(llama, workers, tmp_path_factory, **settings)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2, distributed_optimizer=True),
        Layout(cp=2, distributed_optimizer=True, exchange="all_gather"),
        Layout(tp=2, sp=True, dp=2, distributed_optimizer=True),
        Layout(pp=2, dp=2, distributed_optimizer=True),
    ],
    ids=str,
)
def test_the_distributed_optimizer_makes_the_same_updates(
    layout: Layout,
    updates: tuple[dict[str, Any], Straight],
    llama: Scenario,
    workers: Workers,
    tmp_path: Path,
) -> None:
    settings, one = updates
    found = workers.run(layout.world_size, train_and_dump, config_for(llama, layout, **settings), str(tmp_path), 3)[0]
    assert_same_metrics(one.metrics, found["metrics"])
    assert_same_tensors(one.folder / "weights", tmp_path / "weights", TOLERANCE)
