"""On a GPU: a whole training step in bf16 is the CPU's in fp32, up to bf16's rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.utils.optional import has_transformer_engine
from tests.support.devices import train_on
from tests.support.layouts import read_dump
from tests.support.scenario import make_scenario

# On a CPU bf16 moves losses by 0.1 % and each gradient, as a vector, by 1 to 3 %.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.01, 0.08


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("engine", "changes"),
    [(False, {}), (True, {}), (True, {"attention_backend": "te", "prefix_sharing": False})],
    ids=["our layers", "Transformer Engine's layers", "Transformer Engine's attention"],
)
def test_a_step_on_a_gpu_is_the_step_on_a_cpu(engine: bool, changes: dict[str, Any], family: str, tmp_path: Path) -> None:
    if engine and not has_transformer_engine():
        pytest.skip("needs Transformer Engine")
    scenario = make_scenario(tmp_path / "scenario", family)
    config = scenario.config(reference="live", prefix_sharing=changes.get("prefix_sharing", True))
    expected = train_on("cpu", config, tmp_path / "cpu")
    found = train_on("cuda", scenario.config(reference="live", bf16=True, **changes), tmp_path / "cuda", engine=engine)
    for name in ("loss", "nll_loss", "preference_loss", "logps/chosen", "logps/rejected"):
        assert found[name] == pytest.approx(expected[name], rel=LOSS_TOLERANCE), name
    gradients, others = read_dump(tmp_path / "cpu" / "gradients"), read_dump(tmp_path / "cuda" / "gradients")
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        error = (others[name].double() - gradient.double()).norm() / gradient.double().norm()
        assert error <= GRADIENT_TOLERANCE, f"{name}: {error:.3f} of its length"
