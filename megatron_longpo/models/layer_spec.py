"""Which modules a layer is made of: Megatron-Core's, with our core attention, and our norm where Transformer Engine is absent."""

from __future__ import annotations

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_longpo.models.attention import PackedCoreAttention
from megatron_longpo.models.norm import RMSNorm
from megatron_longpo.models.swiglu import SwiGLU
from megatron_longpo.models.transformer_config import uses_transformer_engine
from megatron_longpo.utils.errors import UserError


def core_attention(backend: str) -> type[PackedCoreAttention]:
    """The core attention of ``--attention-backend``.

    Raises:
        UserError: if Transformer Engine is asked for where it cannot run.
    """
    if backend != "te":
        return PackedCoreAttention
    if not uses_transformer_engine():
        raise UserError("--attention-backend te needs Transformer Engine and a GPU; leave it out, or give flash")
    from megatron_longpo.models.engine_attention import EngineCoreAttention

    return EngineCoreAttention


def build_block_spec(
    config: TransformerConfig, attention: type[PackedCoreAttention], vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """Submodules of the layers that this pipeline stage (and model chunk) holds, and of the final norm."""
    layer, final_norm = _engine_layer(config) if uses_transformer_engine() else _local_layer(config)
    layer.submodules.self_attention.submodules.core_attention = attention
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=final_norm)


def _local_layer(config: TransformerConfig) -> tuple[ModuleSpec, type]:
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    mlp = layer.submodules.mlp  # a ModuleSpec in 0.16, a partial in 0.19
    (mlp.submodules if isinstance(mlp, ModuleSpec) else mlp.keywords["submodules"]).activation_func = SwiGLU
    if config.qk_layernorm:
        attention = layer.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer, RMSNorm


def _engine_layer(config: TransformerConfig) -> tuple[ModuleSpec, type]:
    from megatron.core.extensions.transformer_engine import TENorm

    return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm), TENorm
