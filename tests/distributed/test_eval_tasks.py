"""Scores during training do not depend on the layout, and equal logits are told apart as greedy decoding does."""

from __future__ import annotations

import pytest
import torch

from megatron_longpo.config.schema import ParallelConfig
from megatron_longpo.parallel import state as parallel_state
from tests.support.layouts import Layout
from tests.support.taught_model import TaughtModel, make_taught_model, measure
from tests.support.workers import Workers

LAYOUTS = [
    Layout(tp=2),
    Layout(tp=2, sp=True, cp=2),
    Layout(cp=2, exchange="p2p"),
    Layout(pp=2, vpp_layers=1),
    Layout(pp=2, dp=2),
    Layout(dp=2, distributed_optimizer=True),
    Layout(tp=2, sp=True, pp=2),
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> TaughtModel:
    return make_taught_model(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def straight(taught: TaughtModel, workers: Workers) -> dict[str, float]:
    metrics, _ = workers.run(1, measure, taught.config())[0]
    assert 0 < metrics["eval/own"] < 1, "else the comparison would say little"
    return metrics


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_scores_do_not_depend_on_the_layout(
    layout: Layout, taught: TaughtModel, straight: dict[str, float], workers: Workers
) -> None:
    for metrics, scores in workers.run(layout.world_size, measure, taught.config(layout.parallel())):
        assert metrics == pytest.approx(straight, rel=1e-4)
        assert {name: metrics[name] for name in metrics if not name.endswith("/nll")} == {
            name: straight[name] for name in metrics if not name.endswith("/nll")
        }
        assert 0 < len(scores) < 13 if layout.dp > 1 else len(scores) == 13


def test_more_ranks_than_samples_measure_the_same(taught: TaughtModel, workers: Workers) -> None:
    config = taught.config(eval_tasks=("niah_single_1:640",), eval_tasks_samples=1)
    expected, _ = workers.run(1, measure, config)[0]
    config = taught.config(Layout(dp=2).parallel(), eval_tasks=("niah_single_1:640",), eval_tasks_samples=1)
    for metrics, _ in workers.run(2, measure, config):
        assert metrics == pytest.approx(expected, rel=1e-4)


def choose(logits: torch.Tensor, labels: list[int]) -> list[list[float]]:
    """Log-probs and choices of rows whose logits are given (runs inside a worker)."""
    from megatron_longpo.models.linear_choices import linear_choices
    from megatron_longpo.models.linear_cross_entropy import VocabShard

    group = parallel_state.initialize(ParallelConfig(tensor_model_parallel_size=2)).tp_group
    rows = -(-logits.size(1) // 2)
    shard = VocabShard.of(rows, logits.size(1), group)
    weight = torch.zeros(rows, logits.size(0), dtype=torch.float64)
    weight[: shard.size] = logits.t()[shard.start : shard.start + shard.size]
    hidden = torch.eye(logits.size(0), dtype=torch.float64)  # so that row i has the logits of column i of the weight
    log_probs, chosen = linear_choices(hidden, weight, torch.tensor(labels), shard, 2)
    return [log_probs.tolist(), chosen.tolist()]


def test_of_equal_logits_the_first_is_chosen_across_tensor_ranks(workers: Workers) -> None:
    logits = torch.zeros(5, 5, dtype=torch.float64)
    logits[:3, [1, 4]] = 2.0
    logits[3, 4] = 1.0
    labels = [1, 4, 0, 4, 0]
    for log_probs, chosen in workers.run(2, choose, logits, labels):
        assert chosen == [True, False, False, True, True]
        expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(labels)[:, None]).squeeze(1)
        assert log_probs == pytest.approx(expected.tolist())
