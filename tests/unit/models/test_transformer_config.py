"""What the settings of a GPU ask of the machine is there."""

from __future__ import annotations

import importlib.util

import pytest

from megatron_longpo.config.schema import ParallelConfig, TrainingConfig
from megatron_longpo.models import transformer_config
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.transformer_config import build_transformer_config
from megatron_longpo.parallel import cpu_backend

LLAMA = ModelArchitecture(
    family="llama", num_layers=4, hidden_size=8, ffn_hidden_size=16, num_attention_heads=2, num_query_groups=1, kv_channels=4,
    vocab_size=50, norm_epsilon=1e-5, rotary_base=1e4, max_position_embeddings=64,
)  # fmt: skip


@pytest.mark.parametrize("extension", [False, True])
def test_weight_gradients_are_fused_where_the_extension_is_built(extension: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron-Core's head is built with the same settings as Transformer Engine's linears, and refuses without it."""
    monkeypatch.setattr(cpu_backend, "has_cuda", lambda: True)
    monkeypatch.setattr(transformer_config, "has_transformer_engine", lambda: True)
    found = object() if extension else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "fused_weight_gradient_mlp_cuda" else None)
    config = build_transformer_config(LLAMA, ParallelConfig(), TrainingConfig(bf16=True))
    assert config.gradient_accumulation_fusion is extension
