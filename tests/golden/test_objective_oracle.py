"""The first iteration's metrics and gradients equal an independent float64 computation with Hugging Face models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.sampler import PreferenceStream
from tests.support.layouts import Layout, read_dump, train_and_dump
from tests.support.oracle import batch_metrics, load_hf, pair_terms
from tests.support.scenario import BETA, ROTARY_BASE, Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

LAYOUTS = [Layout(), Layout(tp=2), Layout(pp=2), Layout(cp=2), Layout(dp=2), Layout(tp=2, cp=2)]
PREFERENCE_WEIGHT, GLOBAL_BATCH = 0.5, 4
FAMILIES = {
    "llama": {},
    # as Mistral-7B and Qwen2.5: two key/value heads, so that tensor parallelism divides them
    "mistral": {"num_key_value_heads": 2},
    "qwen2": {},
}


@dataclasses.dataclass(frozen=True)
class Solved:
    """A scenario with the oracle's answers."""

    scenario: Scenario
    metrics: dict[str, float]
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def solved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Solved:
    scenario = make_scenario(tmp_path_factory.mktemp(request.param), request.param, num_documents=5, **FAMILIES[request.param])
    workers.run(1, fill_reference, scenario)
    policy, reference = load_hf(scenario.hf, ROTARY_BASE), load_hf(scenario.hf)
    dataset = PreferenceDataset(str(scenario.prefix))
    stream = PreferenceStream([len(dataset)], None, scenario.config().training.seed)
    pairs = [dataset[stream.entry(index)[1]] for index in range(GLOBAL_BATCH)]
    terms = [pair_terms(policy, reference, pair, BETA) for pair in pairs]
    metrics = batch_metrics(terms, 1.0, PREFERENCE_WEIGHT)
    metrics["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    return Solved(scenario, {name: value.item() for name, value in metrics.items()}, gradients)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_first_iteration_equals_the_formula(layout: Layout, solved: Solved, workers: Workers, tmp_path: Path) -> None:
    config = dataclasses.replace(
        solved.scenario.config(preference_weight=PREFERENCE_WEIGHT, global_batch_size=GLOBAL_BATCH), parallel=layout.parallel()
    )
    (found,) = workers.run(layout.world_size, train_and_dump, config, str(tmp_path), 1)[0]["metrics"]
    size = abs(solved.metrics["logps/chosen"]) + abs(solved.metrics["logps/rejected"])
    for name, expected in solved.metrics.items():
        bound = BETA * 1e-5 * size if name.startswith("rewards/") else 1e-5 * max(1.0, abs(expected))
        assert found[name] == pytest.approx(expected, abs=bound), name
    assert_gradients(read_dump(tmp_path / "gradients"), solved.gradients)


def assert_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare where the two layouts of weights are the same up to stacking: embeddings, norms, projections."""
    layers = 1 + max(int(name.split(".")[2]) for name in expected if name.startswith("model.layers."))
    rows: dict[str, Any] = {
        "embedding.word_embeddings.weight": expected["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": expected["model.norm.weight"],
        "output_layer.weight": expected["lm_head.weight"],
    }
    for ours, theirs in {
        "decoder.layers.self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "decoder.layers.mlp.linear_fc2.weight": "mlp.down_proj.weight",
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    }.items():
        rows[ours] = torch.stack([expected[f"model.layers.{layer}.{theirs}"] for layer in range(layers)])
    for name, gradient in rows.items():
        error = (found[name].double() - gradient).abs().max().item()
        assert error < 1e-5, f"{name}: {error}"
        assert gradient.abs().max() > 1e-4, f"{name}: the gradient is too small to compare"
