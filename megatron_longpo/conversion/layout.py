"""Where each Hugging Face tensor lies in a native checkpoint. One table serves both directions.

A native checkpoint is what ``megatron.core.dist_checkpointing`` writes for a GPTModel: the layers of one kind of weight are
stacked into one tensor along a leading axis, query, key and value are fused, and gate and up projections lie behind each other.
Norms carry the names that Transformer Engine's fused modules give them, so that either layer spec loads the checkpoint.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megatron_longpo.models.architecture import ModelArchitecture

Shape = tuple[int, ...]
LAYER_PREFIX = "decoder.layers."
EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
HF_EMBEDDING = "model.embed_tokens.weight"
HF_OUTPUT = "lm_head.weight"
# Modules that Megatron-Core gives a per-layer "_extra_state" object: empty outside FP8, but a load asks for it
EXTRA_STATE_MODULES = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block of a native tensor and the Hugging Face tensors in it.

    Attributes:
        key: name of the native tensor.
        global_shape: shape of the whole native tensor.
        offset: where the block starts in it.
        shape: shape of the block.
        hf_names: one name, or query, key and value.
        hf_shapes: their shapes.
        num_query_groups: number of key/value heads if the block fuses query, key and value; otherwise 0.
    """

    key: str
    global_shape: Shape
    offset: Shape
    shape: Shape
    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    num_query_groups: int = 0

    def to_native(self, tensors: list[Tensor]) -> Tensor:
        """The block of this piece, made of its Hugging Face tensors."""
        if not self.num_query_groups:
            return tensors[0].reshape(self.shape)
        return fuse_qkv(*tensors, num_query_groups=self.num_query_groups).reshape(self.shape)

    def to_hf(self, block: Tensor) -> list[Tensor]:
        """The Hugging Face tensors of this piece, in the order of `hf_names`; inverse of `to_native`."""
        if not self.num_query_groups:
            return [block.reshape(self.hf_shapes[0])]
        rows = [shape[0] for shape in self.hf_shapes]
        return split_qkv(block.reshape(sum(rows), *self.hf_shapes[0][1:]), rows, self.num_query_groups)


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, *, num_query_groups: int) -> Tensor:
    """Fuse projections: for each group, its query heads, its key, its value.

    ``[heads * d, ...], [groups * d, ...], [groups * d, ...] -> [(heads + 2 * groups) * d, ...]``
    """
    parts = [part.reshape(num_query_groups, -1, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def split_qkv(fused: Tensor, rows: list[int], num_query_groups: int) -> list[Tensor]:
    """Take query, key and value (with ``rows`` rows) out of `fuse_qkv`'s result."""
    grouped = fused.reshape(num_query_groups, -1, *fused.shape[1:])
    return [part.flatten(0, 1) for part in grouped.split([count // num_query_groups for count in rows], dim=1)]


def build_layout(architecture: ModelArchitecture) -> list[Piece]:
    """Every piece of a model, in the order of the forward pass."""
    hidden, vocab = architecture.hidden_size, architecture.vocab_size
    pieces = [_whole(EMBEDDING, HF_EMBEDDING, (vocab, hidden))]
    for layer in range(architecture.num_layers):
        pieces += _attention_pieces(architecture, layer)
        pieces += _mlp_pieces(architecture, layer)
    pieces.append(_whole("decoder.final_layernorm.weight", "model.norm.weight", (hidden,)))
    if not architecture.tie_word_embeddings:
        pieces.append(_whole(OUTPUT, HF_OUTPUT, (vocab, hidden)))
    return pieces


def hf_shapes(pieces: list[Piece]) -> dict[str, Shape]:
    """Name and shape of every Hugging Face tensor of a model."""
    return {name: shape for piece in pieces for name, shape in zip(piece.hf_names, piece.hf_shapes, strict=True)}


def native_shapes(pieces: list[Piece]) -> dict[str, Shape]:
    """Name and shape of every native tensor of a model."""
    return {piece.key: piece.global_shape for piece in pieces}


def _whole(key: str, hf_name: str, shape: Shape) -> Piece:
    return Piece(key, shape, (0,) * len(shape), shape, (hf_name,), (shape,))


def _stacked(
    architecture: ModelArchitecture, layer: int, key: str, hf_name: str, shape: Shape, part: int = 0, parts: int = 1
) -> Piece:
    """Layer ``layer`` of a stacked tensor: the ``part``-th of ``parts`` equal blocks behind each other."""
    return Piece(
        key=LAYER_PREFIX + key,
        global_shape=(architecture.num_layers, shape[0] * parts, *shape[1:]),
        offset=(layer, shape[0] * part, *(0 for _ in shape[1:])),
        shape=(1, *shape),
        hf_names=(f"model.layers.{layer}.{hf_name}",),
        hf_shapes=(shape,),
    )


def _qkv(architecture: ModelArchitecture, layer: int, kind: str, trailing: Shape) -> Piece:
    head, groups = architecture.kv_channels, architecture.num_query_groups
    rows = (architecture.num_attention_heads * head, groups * head, groups * head)
    total = sum(rows)
    return Piece(
        key=f"{LAYER_PREFIX}self_attention.linear_qkv.{kind}",
        global_shape=(architecture.num_layers, total, *trailing),
        offset=(layer, 0, *(0 for _ in trailing)),
        shape=(1, total, *trailing),
        hf_names=tuple(f"model.layers.{layer}.self_attn.{name}_proj.{kind}" for name in "qkv"),
        hf_shapes=tuple((count, *trailing) for count in rows),
        num_query_groups=groups,
    )


def _attention_pieces(architecture: ModelArchitecture, layer: int) -> list[Piece]:
    hidden, head = architecture.hidden_size, architecture.kv_channels
    pieces = [
        _stacked(architecture, layer, "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", (hidden,)),
        _qkv(architecture, layer, "weight", (hidden,)),
    ]
    if architecture.add_qkv_bias:
        pieces.append(_qkv(architecture, layer, "bias", ()))
    if architecture.qk_layernorm:
        for name in ("q", "k"):
            key, hf_name = f"self_attention.{name}_layernorm.weight", f"self_attn.{name}_norm.weight"
            pieces.append(_stacked(architecture, layer, key, hf_name, (head,)))
    shape = (hidden, architecture.num_attention_heads * head)
    return [*pieces, _stacked(architecture, layer, "self_attention.linear_proj.weight", "self_attn.o_proj.weight", shape)]


def _mlp_pieces(architecture: ModelArchitecture, layer: int) -> list[Piece]:
    hidden, ffn = architecture.hidden_size, architecture.ffn_hidden_size
    return [
        _stacked(architecture, layer, "mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight", (hidden,)),
        _stacked(architecture, layer, "mlp.linear_fc1.weight", "mlp.gate_proj.weight", (ffn, hidden), part=0, parts=2),
        _stacked(architecture, layer, "mlp.linear_fc1.weight", "mlp.up_proj.weight", (ffn, hidden), part=1, parts=2),
        _stacked(architecture, layer, "mlp.linear_fc2.weight", "mlp.down_proj.weight", (hidden, ffn)),
    ]
