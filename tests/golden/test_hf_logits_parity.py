"""Converted models compute what Hugging Face's do, to fp32 rounding, and the verification sees when they do not."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.record import ModelRecord, find_iteration
from megatron_longpo.conversion.verify import Agreement, Tolerances, compare, hf_logits, native_logits, verify_conversion
from megatron_longpo.utils.errors import UserError
from tests.support.hf_models import VARIANTS, make_hf_model
from tests.support.weights import read_weights

ROOT = Path(__file__).parents[2]
FP32_BOUND = Tolerances(max_logit_difference=1e-4, kl=1e-9, greedy_agreement=1.0)


@pytest.mark.parametrize("family", VARIANTS)
def test_logits_are_those_of_hugging_face(tmp_path, family):
    source = make_hf_model(tmp_path / "hf", family)
    hf_to_mcore(source, tmp_path / "native")
    found = verify_conversion(source, tmp_path / "native", max_tokens=200)
    assert found.tokens == 200
    assert FP32_BOUND.violations(found) == []


def logits_of(source: Path, native: Path, **changes: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hugging Face's logits, and ours with something changed about the architecture."""
    tokens = torch.arange(200) % 256
    folder = find_iteration(native)
    architecture = dataclasses.replace(ModelRecord.read(folder).architecture, **changes)
    return hf_logits(source, tokens), native_logits(folder, architecture, tokens)[0], tokens


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rotary_base": 20000.0}),
        ("llama3-rope", {"rope_scaling": None}),
        ("linear-rope", {"rope_scaling": None}),
        ("mistral", {"norm_epsilon": 1e-1}),
    ],
)
def test_the_comparison_sees_wrong_numerics(tmp_path, family, changes):
    source = make_hf_model(tmp_path / "hf", family)
    hf_to_mcore(source, tmp_path / "native")
    theirs, ours, _ = logits_of(source, tmp_path / "native", **changes)
    assert (theirs - ours).abs().max() > 100 * FP32_BOUND.max_logit_difference


def test_measures_are_what_they_say():
    theirs = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [1.0, 0.0]])
    ours = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    found = compare(theirs, ours, torch.tensor([math.log(0.5), math.log(0.5)]), torch.tensor([0, 1, 0]))
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    third = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.tokens == 3
    assert found.max_logit_difference == 2.0
    assert found.mean_logit_difference == pytest.approx((math.log(3.0) + 1.0 + 2.0) / 6)
    assert found.kl == pytest.approx((first + third) / 3)
    assert found.greedy_agreement == pytest.approx(1 / 3)
    assert found.max_log_prob_difference == pytest.approx(math.log(0.75 / 0.5))


@pytest.mark.parametrize("field", ["max_logit_difference", "kl", "greedy_agreement", "max_log_prob_difference"])
@pytest.mark.parametrize("value", [0.5, math.nan])
def test_each_measure_can_fail_the_verification(field, value):
    perfect = Agreement(100, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert Tolerances().violations(perfect) == []
    (reason,) = Tolerances().violations(dataclasses.replace(perfect, **{field: value}))
    assert field in reason


def test_different_models_are_named_as_such(tmp_path):
    hf_to_mcore(make_hf_model(tmp_path / "one", "llama"), tmp_path / "native")
    other = make_hf_model(tmp_path / "other", "llama", rope_theta=1e6)
    with pytest.raises(UserError, match=r"rotary_base 1000000\.0 there, 10000\.0 here"):
        verify_conversion(other, tmp_path / "native")


@pytest.mark.e2e
def test_the_command_exits_with_1_when_the_models_differ(tmp_path):
    from safetensors.torch import save_file

    source = make_hf_model(tmp_path / "hf", "qwen2")
    hf_to_mcore(source, tmp_path / "native")
    command = [sys.executable, ROOT / "checkpoint_conversion" / "verify_conversion.py"]
    command += ["--hf", source, "--checkpoint", tmp_path / "native"]
    run = {"capture_output": True, "text": True, "timeout": 240, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    agreed = subprocess.run(command, **run)
    assert agreed.returncode == 0, agreed.stderr
    assert "they agree" in agreed.stdout
    weights = read_weights(source)
    weights["model.layers.2.self_attn.k_proj.bias"] += 0.5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    differed = subprocess.run(command, **run)
    assert differed.returncode == 1
    assert "they differ: max_logit_difference" in differed.stdout
