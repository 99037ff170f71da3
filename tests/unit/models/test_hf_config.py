"""config.json is read as transformers reads it, and what is written means the same to transformers 4 and 5."""

import json

import pytest

from megatron_longpo.models.architecture import ModelArchitecture, RopeScaling
from megatron_longpo.models.hf_config import architecture_from_hf, architecture_to_hf
from tests.support.hf_models import COMMON, VARIANTS

OLD_STYLE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def transformers_config(family):
    import transformers

    prefix, fields = VARIANTS[family]
    return getattr(transformers, f"{prefix}Config")(**{**COMMON, **fields, "architectures": [f"{prefix}ForCausalLM"]})


@pytest.mark.parametrize("family", VARIANTS)
def test_reading_gives_what_transformers_means(family):
    config = transformers_config(family)
    architecture = architecture_from_hf(json.loads(json.dumps(config.to_dict())))
    assert architecture.num_layers == config.num_hidden_layers
    assert architecture.hidden_size == config.hidden_size
    assert architecture.ffn_hidden_size == config.intermediate_size
    assert architecture.num_query_groups == config.num_key_value_heads
    assert architecture.kv_channels == getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert architecture.rotary_base == config.rope_parameters["rope_theta"]
    assert architecture.tie_word_embeddings == config.tie_word_embeddings
    assert architecture.norm_epsilon == config.rms_norm_eps
    assert (architecture.rope_scaling.kind if architecture.rope_scaling else "default") == config.rope_parameters["rope_type"]


@pytest.mark.parametrize("family", VARIANTS)
def test_what_is_written_reads_back_the_same_here_and_in_transformers(family):
    before = transformers_config(family)
    architecture = architecture_from_hf(before.to_dict())
    written = architecture_to_hf(architecture, "bfloat16", before.to_dict())
    assert architecture_from_hf(json.loads(json.dumps(written))) == architecture
    after = type(before)(**written)
    assert after.rope_parameters == before.rope_parameters
    assert str(after.dtype).removeprefix("torch.") == "bfloat16"
    same = ("hidden_size", "num_key_value_heads", "tie_word_embeddings", "vocab_size", "bos_token_id", "max_position_embeddings")
    assert {name: getattr(after, name) for name in same} == {name: getattr(before, name) for name in same}


@pytest.mark.parametrize("family", VARIANTS)
def test_transformers_4_finds_its_own_fields(family):
    architecture = architecture_from_hf(transformers_config(family).to_dict())
    written = architecture_to_hf(architecture, "float32")
    for field in ("rope_parameters", "dtype"):  # unknown to transformers 4
        written.pop(field, None)
    assert architecture_from_hf(written) == architecture


@pytest.mark.parametrize(
    ("fields", "base", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 5e5, RopeScaling(kind="linear", factor=2.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5, RopeScaling(kind="llama3", **LLAMA3)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6, **LLAMA3}}, 1e6, RopeScaling(kind="llama3", **LLAMA3)),
    ],
)
def test_rope_settings_of_either_generation(fields, base, scaling):
    architecture = architecture_from_hf({**OLD_STYLE, **fields})
    assert (architecture.rotary_base, architecture.rope_scaling) == (base, scaling)


def test_class_defaults_fill_what_old_files_leave_out():
    architecture = architecture_from_hf(OLD_STYLE)
    assert (architecture.num_query_groups, architecture.kv_channels, architecture.tie_word_embeddings) == (4, 16, False)
    qwen3 = {**OLD_STYLE, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2}
    assert architecture_from_hf(qwen3).kv_channels == 128


def test_a_raised_base_and_a_longer_limit_are_written():
    architecture = ModelArchitecture.from_dict(
        {**architecture_from_hf(OLD_STYLE).to_dict(), "rotary_base": 1e7, "max_position_embeddings": 131072}
    )
    written = architecture_to_hf(architecture, "float32", {**OLD_STYLE, "rope_theta": 1e4, "eos_token_id": 7})
    assert (written["rope_theta"], written["rope_parameters"]["rope_theta"]) == (1e7, 1e7)
    assert (written["max_position_embeddings"], written["eos_token_id"]) == (131072, 7)
