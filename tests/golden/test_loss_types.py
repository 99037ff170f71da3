"""Every loss type, in every kind of layout, against its formula in float64: loss, preference loss and gradients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.pair import PreferencePair
from megatron_longpo.data.sampler import PreferenceStream
from tests.golden.test_objective_oracle import assert_gradients
from tests.support.layouts import Layout, read_dump, train_and_dump
from tests.support.loss_oracle import Case, preference
from tests.support.oracle import load_hf, token_logps
from tests.support.scenario import ROTARY_BASE, Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

BATCH = 4
CASES = {
    "hinge": Case("hinge"),
    "hinge-per-turn": Case("hinge", per_turn=True),
    "ipo": Case("ipo"),
    "ipo-per-turn": Case("ipo", per_turn=True),
    "simpo": Case("simpo", beta=2.0, gamma=0.3),
    "simpo-smoothed-per-turn": Case("simpo", beta=2.0, per_turn=True, smoothing=0.2),
}
LAYOUTS = [Layout(tp=2, sp=True), Layout(pp=2), Layout(cp=2), Layout(dp=2)]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A scenario with its Hugging Face models and the pairs of the first batch."""

    scenario: Scenario
    policy: Any
    reference: Any
    pairs: list[PreferencePair]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Problem:
    made = make_scenario(tmp_path_factory.mktemp("losses"), "llama", num_documents=5, num_words=40, num_hidden_layers=2)
    for context in ("short", "long"):
        workers.run(1, fill_reference, made, context)
    dataset = PreferenceDataset(str(made.prefix))
    stream = PreferenceStream([len(dataset)], None, 42)
    pairs = [dataset[stream.entry(index)[1]] for index in range(BATCH)]
    assert len({pair.num_turns for pair in pairs}) == 1 < pairs[0].num_turns
    return Problem(made, load_hf(made.hf, ROTARY_BASE), load_hf(made.hf), pairs)


def settings(case: Case) -> dict[str, Any]:
    """A case as the configuration names it."""
    return {
        "loss_type": case.loss_type,
        "beta": case.beta,
        "turn_aggregation": "per-turn" if case.per_turn else "sum",
        "label_smoothing": case.smoothing,
        "simpo_gamma": case.gamma,
        "preference_weight": 0.5,
        "global_batch_size": BATCH,
    }


def expected(problem: Problem, case: Case) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics of the batch and gradients of its loss, from the formulas."""
    problem.policy.zero_grad()
    preferences = torch.stack([preference(case, problem.policy, problem.reference, pair) for pair in problem.pairs])
    nll = torch.stack([-token_logps(problem.policy, pair.chosen.input_ids).mean() for pair in problem.pairs])
    loss = nll.mean() + 0.5 * preferences.mean()
    loss.backward()
    gradients = {name: value.grad for name, value in problem.policy.named_parameters()}
    return {"loss": loss.item(), "nll_loss": nll.mean().item(), "preference_loss": preferences.mean().item()}, gradients


def assert_equals_the_formula(
    problem: Problem, case: Case, workers: Workers, folder: Path, layout: Layout | None = None, **changes: Any
) -> None:
    layout = layout or Layout()
    config = dataclasses.replace(problem.scenario.config(**settings(case), **changes), parallel=layout.parallel())
    (found,) = workers.run(layout.world_size, train_and_dump, config, str(folder), 1)[0]["metrics"]
    metrics, gradients = expected(problem, case)
    for name, value in metrics.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert_gradients(read_dump(folder / "gradients"), gradients)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_type_is_its_formula(name: str, problem: Problem, workers: Workers, tmp_path: Path) -> None:
    assert_equals_the_formula(problem, CASES[name], workers, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["ipo", "simpo"])
def test_a_loss_type_is_its_formula_in_every_layout(
    name: str, layout: Layout, problem: Problem, workers: Workers, tmp_path: Path
) -> None:
    assert_equals_the_formula(problem, CASES[name], workers, tmp_path, layout)


@pytest.mark.parametrize("name", ["ipo", "simpo"])
def test_a_loss_type_is_its_formula_of_packed_pairs(name: str, problem: Problem, workers: Workers, tmp_path: Path) -> None:
    assert_equals_the_formula(problem, CASES[name], workers, tmp_path, micro_batch_tokens=900)


def test_without_a_reference_no_cache_is_asked_for(problem: Problem, workers: Workers, tmp_path: Path) -> None:
    made = make_scenario(tmp_path, "llama", num_documents=5, num_words=40, num_hidden_layers=2)
    assert not list(made.prefix.parent.glob("*.npz"))
    config = made.config(**settings(CASES["simpo"]))
    (found,) = workers.run(1, train_and_dump, config, str(tmp_path / "dump"), 1)[0]["metrics"]
    assert {"rewards/chosen", "rewards/margins", "logps/rejected", "preference_loss"} <= found.keys()
    assert "kl/short_to_long" not in found
