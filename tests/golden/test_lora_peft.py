"""Adapters are PEFT's: same gradients of the same objective on Hugging Face's model, and an export that PEFT loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.sampler import PreferenceStream
from megatron_longpo.models.lora_targets import LINEARS
from tests.support.layouts import Layout, read_dump, train_and_dump
from tests.support.oracle import batch_metrics, load_hf, pair_terms
from tests.support.scenario import BETA, ROTARY_BASE, Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

ROOT = Path(__file__).parents[2]
RANK, ALPHA, GLOBAL_BATCH = 4, 10.0, 4
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SOME = ("q_proj", "v_proj", "up_proj")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A scenario, and its run: adapters and first gradients as training dumped them."""

    scenario: Scenario
    folder: Path
    metrics: dict[str, float]

    def matrices(self, dump: str) -> dict[str, torch.Tensor]:
        """By PEFT's names."""
        return peft_names(read_dump(self.folder / dump))


def peft_names(dump: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stacked adapters by the names that PEFT gives them in a live model."""
    named = {}
    for linear in LINEARS:
        for part in linear.parts:
            for matrix in "AB":
                for layer, tensor in enumerate(dump.get(linear.key(part, matrix), ())):
                    named[f"base_model.model.{linear.hf_module(layer, part)}.lora_{matrix}.default.weight"] = tensor
    assert len(named) == sum(len(tensor) for tensor in dump.values()), "a tensor of the dump is no adapter"
    return named


def peft_model(scenario: Scenario, targets: tuple[str, ...], matrices: dict[str, torch.Tensor]) -> Any:
    """PEFT's model in float64 with the policy's RoPE base and the given adapters."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=list(targets), task_type="CAUSAL_LM")
    model = get_peft_model(load_hf(scenario.hf, ROTARY_BASE), settings).double()
    adapters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapters.keys() == matrices.keys()
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(matrices[name])
    return model


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> dict[str, Scenario]:
    """A Llama, and a Qwen2.5 with its biases, with their reference caches."""
    made = {}
    for family in ("llama", "qwen2"):
        made[family] = make_scenario(tmp_path_factory.mktemp(family), family, num_documents=5, num_words=30, num_hidden_layers=2)
        workers.run(1, fill_reference, made[family])
    return made


def config_for(scenario: Scenario, layout: Layout = Layout(), **changes: Any) -> Any:  # noqa: B008
    settings = {"global_batch_size": GLOBAL_BATCH, "lora_rank": RANK, "lora_alpha": ALPHA, "lr": 0.0, **changes}
    return dataclasses.replace(scenario.config(**settings), parallel=layout.parallel())


@pytest.mark.parametrize(
    ("targets", "layout"),
    [(ALL, Layout()), (ALL, Layout(tp=2, sp=True)), (SOME, Layout(tp=2))],
    ids=["all", "all-tp2-sp", "some-tp2"],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradients_are_those_of_peft_on_hugging_faces_model(
    family: str, targets: tuple[str, ...], layout: Layout, scenarios: dict[str, Scenario], workers: Workers, tmp_path: Path
) -> None:
    scenario = scenarios[family]
    config = config_for(scenario, layout, lora_target_modules=targets)
    (found,) = workers.run(layout.world_size, train_and_dump, config, str(tmp_path), 1)[0]["metrics"]
    trained = Trained(scenario, tmp_path, found)
    policy, reference = peft_model(scenario, targets, trained.matrices("weights")), load_hf(scenario.hf)
    dataset = PreferenceDataset(str(scenario.prefix))
    stream = PreferenceStream([len(dataset)], None, config.training.seed)
    pairs = [dataset[stream.entry(index)[1]] for index in range(GLOBAL_BATCH)]
    metrics = batch_metrics([pair_terms(policy, reference, pair, BETA) for pair in pairs], 1.0, 0.5)
    metrics["loss"].backward()
    assert found["loss"] == pytest.approx(metrics["loss"].item(), abs=1e-5)
    gradients = trained.matrices("gradients")
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 1e-4, f"{name}: the gradient is too small to compare"
            assert (gradients[name].double() - parameter.grad).abs().max() < 1e-5, name
