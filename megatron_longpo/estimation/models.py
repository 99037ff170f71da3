"""Shapes of models that people ask about, so that no file of theirs is needed to plan a run."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from megatron_longpo.models.architecture import Family, ModelArchitecture


def _model(
    family: Family, layers: int, hidden: int, ffn: int, heads: int, groups: int, vocab: int, **more: Any
) -> ModelArchitecture:
    return ModelArchitecture(
        **{
            "family": family,
            "num_layers": layers,
            "hidden_size": hidden,
            "ffn_hidden_size": ffn,
            "num_attention_heads": heads,
            "num_query_groups": groups,
            "kv_channels": hidden // heads,
            "vocab_size": vocab,
            "norm_epsilon": 1e-5 if family in ("llama", "mistral") else 1e-6,
            "rotary_base": 1e6,
            "max_position_embeddings": 32768,
            "add_qkv_bias": family == "qwen2",
            "qk_layernorm": family == "qwen3",
            **more,
        }
    )


MODELS: MappingProxyType[str, ModelArchitecture] = MappingProxyType(
    {
        "mistral-7b": _model("mistral", 32, 4096, 14336, 32, 8, 32000),
        "llama-3.1-8b": _model("llama", 32, 4096, 14336, 32, 8, 128256),
        "llama-3.1-70b": _model("llama", 80, 8192, 28672, 64, 8, 128256),
        "qwen2.5-1.5b": _model("qwen2", 28, 1536, 8960, 12, 2, 151936, tie_word_embeddings=True),
        "qwen2.5-7b": _model("qwen2", 28, 3584, 18944, 28, 4, 152064),
        "qwen2.5-14b": _model("qwen2", 48, 5120, 13824, 40, 8, 152064),
        "qwen2.5-32b": _model("qwen2", 64, 5120, 27648, 40, 8, 152064),
        "qwen3-8b": _model("qwen3", 36, 4096, 12288, 32, 8, 151936, kv_channels=128),
    }
)
"""From the ``config.json`` of each model's release. Only what memory and FLOPs depend on is to be relied on."""
