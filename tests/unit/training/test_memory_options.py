"""Recomputation and moving memory to the host are refused where they cannot be, and asked of Megatron-Core as it documents.

No GPU has run the latter: what is tested of it is what is refused, and what is passed on.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.optimizer import OptimizerConfig as McoreOptimizerConfig

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.schema import OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.transformer_config import build_transformer_config
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.training import memory_options
from megatron_longpo.training import optimizer as our_optimizer
from megatron_longpo.training.memory_options import check_offload, check_recompute
from megatron_longpo.utils.errors import UserError

RUN = ["--pretrained-checkpoint", "model", "--data-path", "pairs", "--num-epochs", "1"]
STATES = RunConfig(
    optimizer=OptimizerConfig(optimizer_cpu_offload=True, optimizer_offload_fraction=0.5),
    parallel=ParallelConfig(use_distributed_optimizer=True),
)
LAYERS = RunConfig(training=TrainingConfig(cpu_offloading_num_layers=2))
LLAMA = ModelArchitecture(
    family="llama", num_layers=4, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2, num_query_groups=1, kv_channels=4,
    vocab_size=50, norm_epsilon=1e-5, rotary_base=1e4, max_position_embeddings=64,
)  # fmt: skip


@pytest.mark.parametrize(("config", "flag"), [(STATES, "--optimizer-cpu-offload"), (LAYERS, "--cpu-offloading-num-layers")])
def test_without_a_gpu_there_is_nothing_to_move(config: RunConfig, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "has_cuda", lambda: False)
    with pytest.raises(UserError, match=f"^{flag} moves memory from a GPU.*no GPU"):
        check_offload(config, 4)
    check_offload(RunConfig(), 4)


def test_both_need_transformer_engine_and_a_layer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "has_cuda", lambda: True)
    monkeypatch.setattr(memory_options, "has_transformer_engine", lambda: False)
    for config in (STATES, LAYERS):
        with pytest.raises(UserError, match="needs Transformer Engine"):
            check_offload(config, 4)
    monkeypatch.setattr(memory_options, "has_transformer_engine", lambda: True)
    check_offload(STATES, 4)
    check_offload(LAYERS, 4)
    with pytest.raises(UserError, match="must leave a layer on the GPU; the model has 2"):
        check_offload(LAYERS, 2)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--optimizer-cpu-offload"], "needs --use-distributed-optimizer"),
        (["--optimizer-offload-fraction", "1.5"], "at most 1"),
        (["--optimizer-offload-fraction", "0"], "greater than 0"),
        (["--cpu-offloading-num-layers", "1", "--recompute-granularity", "full"], "exclude each other"),
        (["--cpu-offloading-num-layers", "-1"], "must not be negative"),
    ],
)
def test_combinations_that_megatron_core_refuses_are_refused_in_words(flags: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_args([*RUN, *flags], world_size=1)


def test_layers_do_not_move_out_of_a_pipeline() -> None:
    with pytest.raises(UserError, match="--pipeline-model-parallel-size above 1"):
        parse_args([*RUN, "--cpu-offloading-num-layers", "1", "--pipeline-model-parallel-size", "2"], world_size=2)


@pytest.mark.parametrize(
    ("method", "unit", "stages", "reason"),
    [
        ("uniform", 3, 1, "--recompute-num-layers 3 must divide the 4 layers"),
        ("uniform", 4, 2, "--recompute-num-layers 4 must divide the 2 layers"),
        ("block", 5, 1, "--recompute-num-layers 5 must be at most the 4 layers"),
        ("uniform", 2, 2, None),
        ("block", 3, 1, None),
    ],
)
def test_units_of_recomputation_fit_a_stage(method: Any, unit: int, stages: int, reason: str | None) -> None:
    training = TrainingConfig(recompute_granularity="full", recompute_method=method, recompute_num_layers=unit)
    config = RunConfig(training=training, parallel=ParallelConfig(pipeline_model_parallel_size=stages))
    if reason is None:
        check_recompute(config, LLAMA)
    else:
        with pytest.raises(UserError, match=reason):
            check_recompute(config, LLAMA)


def passed_on(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The settings that reach Megatron-Core's optimizer builder; each must be a field of its configuration class.

    The class itself asks for Transformer Engine's version and cannot be built without it.
    """
    seen: list[Any] = []
    names = {field.name for field in dataclasses.fields(McoreOptimizerConfig)}

    def settings(**given: Any) -> SimpleNamespace:
        assert given.keys() <= names
        return SimpleNamespace(**given)

    monkeypatch.setattr(our_optimizer, "McoreOptimizerConfig", settings)
    monkeypatch.setattr(our_optimizer, "get_standard_config_overrides", lambda _: {})
    monkeypatch.setattr(our_optimizer, "get_megatron_optimizer", lambda settings, *_, **__: seen.append(settings))
    our_optimizer.build_optimizer(config, [])
    return seen[0]


def test_the_optimizer_is_told_what_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = passed_on(STATES, monkeypatch)
    assert (moved.optimizer_cpu_offload, moved.optimizer_offload_fraction) == (True, 0.5)
    assert moved.use_precision_aware_optimizer, "otherwise fp32 main weights stay on the GPU"
    stays = passed_on(dataclasses.replace(STATES, optimizer=OptimizerConfig()), monkeypatch)
    assert (stays.optimizer_cpu_offload, stays.use_precision_aware_optimizer) == (False, False)


def test_the_model_is_told_how_many_layers_to_move() -> None:
    config = build_transformer_config(LLAMA, ParallelConfig(), LAYERS.training)
    assert (config.cpu_offloading, config.cpu_offloading_num_layers) == (True, 2)
    assert (config.cpu_offloading_activations, config.cpu_offloading_weights) == (True, False)
    assert not build_transformer_config(LLAMA, ParallelConfig(), TrainingConfig()).cpu_offloading
