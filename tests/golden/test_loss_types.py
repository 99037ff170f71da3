"""Every loss type, in every kind of layout, against its formula in float64: loss, preference loss and gradients."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.indexed import write_indexed
from megatron_longpo.data.layout import pack_pair
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
    "solo-dpo": Case("solo-dpo", alpha=3.0),
    "solo-dpo-per-turn": Case("solo-dpo", per_turn=True, alpha=0.7, smoothing=0.1),
    "solo-simpo": Case("solo-simpo", beta=2.0, gamma=0.3, alpha=1.0),
    "solo-orpo": Case("solo-orpo", beta=0.4, alpha=1.0),
    "sft-s2l": Case("sft-s2l"),
    "sft-s2l-per-turn": Case("sft-s2l", beta=0.3, per_turn=True),
    "solo-orpo-per-turn": Case("solo-orpo", beta=0.4, per_turn=True, alpha=2.0),
}
DEFAULT_ALPHA = {"solo-dpo": 3.0, "solo-simpo": 1.0, "solo-orpo": 1.0}
LAYOUTS = [Layout(tp=2, sp=True), Layout(pp=2), Layout(cp=2), Layout(dp=2), Layout(pp=2, vpp_layers=1), Layout(tp=2, cp=2)]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A scenario with its Hugging Face models and the pairs of the first batch."""

    scenario: Scenario
    policy: Any
    reference: Any
    pairs: list[PreferencePair]
    solved: dict[Case, tuple[dict[str, float], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Problem:
    made = make_scenario(tmp_path_factory.mktemp("losses"), "llama", num_documents=5, num_words=40)
    for context in ("short", "long"):
        workers.run(1, fill_reference, made, context)
    dataset = PreferenceDataset(str(made.prefix))
    stream = PreferenceStream([len(dataset)], None, 42)
    pairs = [dataset[stream.entry(index)[1]] for index in range(BATCH)]
    assert len({pair.num_turns for pair in pairs}) == 1 < pairs[0].num_turns
    return Problem(made, load_hf(made.hf, ROTARY_BASE), load_hf(made.hf), pairs, {})


def settings(case: Case) -> dict[str, Any]:
    """A case as the configuration names it."""
    return {
        "loss_type": case.loss_type,
        "beta": case.beta,
        "turn_aggregation": "per-turn" if case.per_turn else "sum",
        "label_smoothing": case.smoothing,
        "simpo_gamma": case.gamma,
        "solo_alpha": None if case.alpha == DEFAULT_ALPHA.get(case.loss_type) else case.alpha,
        "reference": "live" if case.loss_type == "sft-s2l" else "cache",
        "preference_weight": 0.5,
        "global_batch_size": BATCH,
    }


def expected(problem: Problem, case: Case) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics of the batch and gradients of its loss, from the formulas; computed once."""
    if case in problem.solved:
        return problem.solved[case]
    problem.policy.zero_grad()
    preferences = torch.stack([preference(case, problem.policy, problem.reference, pair) for pair in problem.pairs])
    nll = torch.stack([-token_logps(problem.policy, pair.chosen.input_ids).mean() for pair in problem.pairs])
    loss = nll.mean() + 0.5 * preferences.mean()
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in problem.policy.named_parameters()}
    metrics = {"loss": loss.item(), "nll_loss": nll.mean().item(), "preference_loss": preferences.mean().item()}
    return problem.solved.setdefault(case, (metrics, gradients))


def assert_equals_the_formula(
    problem: Problem, case: Case, workers: Workers, folder: Path, layout: Layout | None = None, **changes: Any
) -> None:
    layout = layout or Layout()
    config = dataclasses.replace(problem.scenario.config(**(settings(case) | changes)), parallel=layout.parallel())
    (found,) = workers.run(layout.world_size, train_and_dump, config, str(folder), 1)[0]["metrics"]
    metrics, gradients = expected(problem, case)
    for name, value in metrics.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert_gradients(read_dump(folder / "gradients"), gradients)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_type_is_its_formula(name: str, problem: Problem, workers: Workers, tmp_path: Path) -> None:
    assert_equals_the_formula(problem, CASES[name], workers, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["solo-dpo", "sft-s2l"])
def test_a_loss_type_is_its_formula_in_every_layout(
    name: str, layout: Layout, problem: Problem, workers: Workers, tmp_path: Path
) -> None:
    # two pairs together: of one alone, each context rank happens to hold the same answers in the long chat and in the short ones
    together = {"micro_batch_size": 2} if layout.cp > 1 else {}
    assert_equals_the_formula(problem, CASES[name], workers, tmp_path, layout, **together)


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("name", ["ipo", "solo-dpo", "sft-s2l"])
def test_a_loss_type_is_its_formula_of_packed_pairs(
    name: str, sharing: bool, problem: Problem, workers: Workers, tmp_path: Path
) -> None:
    assert_equals_the_formula(problem, CASES[name], workers, tmp_path, prefix_sharing=sharing, micro_batch_tokens=2500)


def test_a_live_reference_reads_both_contexts(problem: Problem, workers: Workers, tmp_path: Path) -> None:
    assert_equals_the_formula(problem, CASES["solo-dpo"], workers, tmp_path, reference="live")


def test_a_teacher_may_be_the_policy_s_own_base(problem: Problem, workers: Workers, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy"
    shutil.copytree(problem.scenario.native, elsewhere)
    found = []
    for checkpoint in (None, str(elsewhere)):  # the base under the adapters, or a model of its own
        config = problem.scenario.config(**settings(CASES["sft-s2l"]), lora_rank=4, reference_checkpoint=checkpoint)
        found.append(workers.run(1, train_and_dump, config, str(tmp_path / "dump"), 2)[0]["metrics"])
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    plain = problem.scenario.config(**settings(CASES["sft-s2l"]))
    (unadapted,) = workers.run(1, train_and_dump, plain, str(tmp_path / "dump"), 1)[0]["metrics"]
    assert found[0][0]["kl/long_to_short"] != pytest.approx(unadapted["kl/long_to_short"], rel=1e-2), "the adapters do nothing"


def test_the_divergence_is_told_for_a_token(problem: Problem, workers: Workers, tmp_path: Path) -> None:
    config = problem.scenario.config(**settings(CASES["sft-s2l"]))
    (found,) = workers.run(1, train_and_dump, config, str(tmp_path), 1)[0]["metrics"]
    tokens = [end - start for pair in problem.pairs for start, end in pair.chosen.answer_spans]
    total = found["preference_loss"] * BATCH / CASES["sft-s2l"].beta
    assert found["kl/long_to_short"] == pytest.approx(total / sum(tokens), rel=1e-6)
    assert found["kl/long_to_short"] > 0.01, "policy and reference agree: the comparisons would say little"
    assert not {"rewards/chosen", "logps/rejected", "kl/short_to_long"} & found.keys()


def test_an_answer_of_other_tokens_cannot_be_taught(problem: Problem, workers: Workers, tmp_path: Path) -> None:
    dataset = PreferenceDataset(str(problem.scenario.prefix))
    pairs = [dataset[index] for index in range(len(dataset))]
    chat = pairs[2].short_chosen[1]
    chat.input_ids[chat.answer_spans[0][0]] += 1
    folder = tmp_path / "data"
    folder.mkdir()
    write_indexed(str(folder / "pairs"), (pack_pair(pair) for pair in pairs))
    shutil.copy(f"{problem.scenario.prefix}.json", folder / "pairs.json")
    config = problem.scenario.config(**settings(CASES["sft-s2l"]), data_path=(str(folder / "pairs"),))
    with pytest.raises(AssertionError, match="the chosen answer of turn 2 of document document-2 is other tokens"):
        workers.run(1, train_and_dump, config, str(tmp_path / "dump"), 2)


@pytest.mark.parametrize("name", ["simpo", "solo-simpo", "solo-orpo"])
def test_without_a_reference_no_cache_is_asked_for(name: str, problem: Problem, workers: Workers, tmp_path: Path) -> None:
    for suffix in ("bin", "idx", "json"):
        shutil.copy(f"{problem.scenario.prefix}.{suffix}", tmp_path / f"alone.{suffix}")
    config = problem.scenario.config(**settings(CASES[name]), data_path=(str(tmp_path / "alone"),))
    (found,) = workers.run(1, train_and_dump, config, str(tmp_path / "dump"), 1)[0]["metrics"]
    read = {"logps/short_chosen", "logps/short_rejected", "alignment_loss"} if name.startswith("solo") else {"logps/rejected"}
    assert {"rewards/chosen", "rewards/margins", "preference_loss", *read} <= found.keys()
    assert ("logps/rejected" in found) == (name == "simpo"), "the rejected answer on the long context is not read"
    assert "kl/short_to_long" not in found
