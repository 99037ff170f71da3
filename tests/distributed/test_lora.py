"""Training adapters: the same loss, gradients and adapters in every layout, over a base that does not move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_layout_parity import (
    TOLERANCE,
    Straight,
    assert_same_metrics,
    assert_same_tensors,
    assert_same_training,
    config_for,
    train_straight,
)
from tests.support.layouts import Layout, train_and_dump
from tests.support.scenario import Scenario, with_fields
from tests.support.workers import Workers

LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8.0}
# a large epsilon: Adam would otherwise amplify the round-off of near-zero gradients to the size of the learning rate
ADAM: dict[str, Any] = {**LORA, "optimizer": "adam", "lr": 1e-3, "adam_eps": 1e-3, "clip_grad": 0.5}
LAYOUTS = [
    Layout(tp=2),
    Layout(tp=2, sp=True),
    Layout(pp=2),
    Layout(cp=2, exchange="all_gather"),
    Layout(cp=2, exchange="a2a"),
    Layout(cp=2, exchange="p2p"),
    Layout(dp=2),
    Layout(pp=2, vpp_layers=1),
    Layout(tp=2, sp=True, pp=2),
    Layout(tp=2, cp=2, exchange="p2p"),
    Layout(tp=2, sp=True, cp=2, exchange="all_gather"),
    Layout(pp=2, cp=2, exchange="a2a"),
]


@pytest.fixture(scope="module")
def straight(llama: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return train_straight(llama, workers, tmp_path_factory, **LORA)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_loss_gradients_and_adapters_do_not_depend_on_the_layout(
    layout: Layout, llama: Scenario, straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    found = workers.run(layout.world_size, train_and_dump, config_for(llama, layout, **LORA), str(tmp_path), 3)
    assert_same_training(straight, found, tmp_path)


@pytest.fixture(scope="module")
def updates(llama: Scenario, workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Three iterations with `ADAM` in one process."""
    one = train_straight(llama, workers, tmp_path_factory, **ADAM)
    assert one.metrics[0]["grad_norm"] > 0.5, "nothing is clipped"
    return one


@pytest.mark.parametrize(
    ("layout", "param_gather"),
    [
        (Layout(dp=2, distributed_optimizer=True), False),
        (Layout(dp=2, distributed_optimizer=True, overlap=True), True),
        (Layout(tp=2, sp=True, dp=2, distributed_optimizer=True), False),
        (Layout(cp=2, dp=2, distributed_optimizer=True, exchange="p2p"), False),
    ],
    ids=["dp2", "dp2-overlap", "tp2-sp-dp2", "cp2-dp2"],
)
def test_the_distributed_optimizer_makes_the_same_updates(
    layout: Layout,
    param_gather: bool,
    llama: Scenario,
    updates: Straight,
    workers: Workers,
    tmp_path: Path,
) -> None:
    config = with_fields(config_for(llama, layout, **ADAM), overlap_param_gather=param_gather)
    found = workers.run(layout.world_size, train_and_dump, config, str(tmp_path), 3)[0]
    assert_same_metrics(updates.metrics, found["metrics"])
    assert_same_tensors(updates.folder / "weights", tmp_path / "weights", TOLERANCE)


@pytest.mark.parametrize(
    "kind",
    [
        {"recompute_granularity": "full"},
        {"recompute_granularity": "full", "recompute_attention": False},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2},
        {"recompute_granularity": "selective"},
    ],
    ids=["full", "all-but-attention", "first-layers", "selective"],
)
def test_recomputed_layers_train_alike(
    kind: dict[str, Any], llama: Scenario, straight: Straight, workers: Workers, tmp_path: Path
) -> None:
    """The first unit gets no gradient where its input has none: the embeddings are frozen."""
    config = config_for(llama, Layout(), **kind, **LORA)
    assert_same_metrics(straight.metrics, workers.run(1, train_and_dump, config, str(tmp_path), 3)[0]["metrics"])
    assert_same_tensors(straight.folder / "gradients", tmp_path / "gradients", TOLERANCE)


def train_with_one_model(config: Any, folder: str, iterations: int) -> Any:
    """`train_and_dump` where a second model cannot be built (runs inside a worker)."""
    from megatron_longpo.training import reference

    usual = reference.build_frozen_model
    reference.build_frozen_model = None  # type: ignore[assignment]
    try:
        return train_and_dump(config, folder, iterations)
    finally:
        reference.build_frozen_model = usual


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, sp=True), Layout(pp=2, vpp_layers=1)], ids=str)
def test_the_base_under_the_adapters_is_a_live_reference(
    layout: Layout, llama: Scenario, workers: Workers, tmp_path: Path
) -> None:
    cached, live = (config_for(llama, layout, reference=source, **LORA) for source in ("cache", "live"))
    one = workers.run(layout.world_size, train_and_dump, cached, str(tmp_path / "one"), 2)[0]["metrics"]
    other = workers.run(layout.world_size, train_with_one_model, live, str(tmp_path / "other"), 2)[0]["metrics"]
    assert_same_metrics(one, other)
    assert abs(one[0]["rewards/chosen"]) > 1e-2, "policy and reference are alike: the comparison would say nothing"


def what_is_trained(config: Any) -> dict[str, Any]:
    """Which parameters have gradients and optimizer states, and which an update changes (runs inside a worker)."""
    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.models.lora import add_adapters
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.training.optimizer import build_optimizer, inner_optimizers
    from megatron_longpo.training.pretrained import read_record
    from megatron_longpo.training.step import wrap_data_parallel

    architecture = read_record(str(config.model.pretrained_checkpoint)).architecture
    state = parallel_state.initialize(config.parallel, 1)
    chunks = build_model(architecture, config.parallel, config.training, state)
    add_adapters(chunks, config.lora, config.training.seed)
    model = wrap_data_parallel(chunks, config)
    optimizer = build_optimizer(config, model)
    with_gradient = {name for name, parameter in chunks[0].named_parameters() if hasattr(parameter, "main_grad")}
    before = {name: parameter.detach().clone() for name, parameter in chunks[0].named_parameters()}
    for name, parameter in chunks[0].named_parameters():
        if name in with_gradient:
            parameter.main_grad.fill_(1.0)
    optimizer.step()
    states = sum(len(inner.optimizer.state) for inner in inner_optimizers(optimizer))
    moved = {name for name, parameter in chunks[0].named_parameters() if not parameter.equal(before[name])}
    return {"with_gradient": with_gradient, "moved": moved, "states": states}


def test_nothing_but_adapters_has_gradients_or_optimizer_states(llama: Scenario, workers: Workers) -> None:
    found = workers.run(1, what_is_trained, config_for(llama, Layout(), optimizer="adam", **LORA))[0]
    assert found["with_gradient"] == found["moved"]
    assert all(".adapter." in name for name in found["moved"])
    assert found["states"] == len(found["moved"]) == 4 * 7 * 2
