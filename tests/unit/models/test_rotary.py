"""Rotation follows Hugging Face's frequencies and the packed positions."""

from __future__ import annotations

import pytest
import torch

from megatron_longpo.models.architecture import RopeScaling
from megatron_longpo.models.rotary import inverse_frequencies, rotary_tables, rotate

LLAMA3 = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
HF_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        (None, {"rope_type": "default"}),
        (RopeScaling(kind="linear", factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (LLAMA3, HF_LLAMA3),
    ],
)
@pytest.mark.parametrize("base", [1e4, 1e7])
def test_tables_equal_hugging_face_s_bit_for_bit(scaling: RopeScaling | None, parameters: dict, base: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131072, rope_parameters={**parameters, "rope_theta": base}
    )
    positions = torch.tensor([0, 1, 2, 1000, 131071, 7])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, 6, 128), positions[None])
    ours = rotary_tables(positions, inverse_frequencies(64, base, scaling))
    assert torch.equal(ours[0], cos[0])
    assert torch.equal(ours[1], sin[0])


def test_scores_depend_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    frequencies = inverse_frequencies(32, 1e4)

    def score(q_position: int, k_position: int) -> float:
        (q_cos, q_sin), (k_cos, k_sin) = (rotary_tables(torch.tensor([p]), frequencies) for p in (q_position, k_position))
        return float((rotate(query, q_cos, q_sin) * rotate(key, k_cos, k_sin)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_bf16_heads_are_rotated_in_fp32() -> None:
    heads = torch.randn(4, 1, 2, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    tables = rotary_tables(torch.arange(100, 104), inverse_frequencies(16, 1e4))
    assert torch.equal(rotate(heads, *tables), rotate(heads.float(), *tables).bfloat16())
