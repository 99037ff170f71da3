"""The layout table: fusing is what Megatron-Core computes with, and its own inverse."""

import pytest
import torch

from megatron_longpo.conversion.layout import build_layout, fuse_qkv, hf_shapes, native_shapes, split_qkv
from megatron_longpo.models.architecture import ModelArchitecture


def architecture(**changes):
    values = {
        "family": "qwen2",
        "num_layers": 2,
        "hidden_size": 6,
        "ffn_hidden_size": 10,
        "num_attention_heads": 6,
        "num_query_groups": 2,
        "kv_channels": 4,
        "vocab_size": 11,
        "norm_epsilon": 1e-5,
        "rotary_base": 1e4,
        "max_position_embeddings": 64,
        "add_qkv_bias": True,
    }
    return ModelArchitecture(**{**values, **changes})


def test_each_group_holds_its_query_heads_then_its_key_then_its_value():
    query, key, value = (torch.tensor([[base + head] for head in range(count)]) for base, count in ((0, 4), (10, 2), (20, 2)))
    assert fuse_qkv(query, key, value, num_query_groups=2).flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 3), (6, 2), (6, 1), (9, 3)])
@pytest.mark.parametrize("trailing", [(), (5,)])
def test_splitting_undoes_fusing(heads, groups, trailing):
    rows = [heads * 4, groups * 4, groups * 4]
    parts = [torch.randn(count, *trailing) for count in rows]
    split = split_qkv(fuse_qkv(*parts, num_query_groups=groups), rows, groups)
    assert all(torch.equal(one, other) for one, other in zip(parts, split, strict=True))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"qk_layernorm": True, "add_qkv_bias": False}])
def test_the_pieces_cover_every_native_tensor_once(changes):
    pieces = build_layout(architecture(**changes))
    counts = {key: torch.zeros(shape, dtype=torch.int) for key, shape in native_shapes(pieces).items()}
    for piece in pieces:
        counts[piece.key][tuple(slice(start, start + size) for start, size in zip(piece.offset, piece.shape, strict=True))] += 1
    assert all((count == 1).all() for count in counts.values())
    assert ("output_layer.weight" in counts) != changes.get("tie_word_embeddings", False)


def test_a_piece_gives_back_the_tensors_that_it_was_made_of():
    pieces = build_layout(architecture())
    for piece in pieces:
        tensors = [torch.randn(shape) for shape in piece.hf_shapes]
        block = piece.to_native(tensors)
        assert tuple(block.shape) == piece.shape
        assert all(torch.equal(one, other) for one, other in zip(tensors, piece.to_hf(block), strict=True))
    assert len(hf_shapes(pieces)) == sum(len(piece.hf_names) for piece in pieces)
