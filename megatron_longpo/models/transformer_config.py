"""The one translation from our settings to Megatron-Core's TransformerConfig."""

from __future__ import annotations

import dataclasses

import torch
from megatron.core.transformer import TransformerConfig

from megatron_longpo.config.schema import ModelConfig, ParallelConfig, TrainingConfig
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.utils.optional import has_fused_weight_gradients, has_transformer_engine

_OVERRIDES = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "norm_epsilon",
    "rotary_base",
    "max_position_embeddings",
)


def apply_overrides(architecture: ModelArchitecture, model: ModelConfig, seq_length: int | None = None) -> ModelArchitecture:
    """The checkpoint's architecture with the flags that were given, and a position range that covers ``seq_length``."""
    given = {name: getattr(model, name) for name in _OVERRIDES if getattr(model, name) is not None}
    changed = dataclasses.replace(architecture, **given)
    if seq_length is None or model.max_position_embeddings is not None:
        return changed
    return dataclasses.replace(changed, max_position_embeddings=max(changed.max_position_embeddings, seq_length))


def uses_transformer_engine() -> bool:
    """Whether linears and norms come from Transformer Engine: it is installed and there is a GPU to run it on."""
    return cpu_backend.has_cuda() and has_transformer_engine()


def build_transformer_config(
    architecture: ModelArchitecture, parallel: ParallelConfig, training: TrainingConfig
) -> TransformerConfig:
    """Settings of every module of the model.

    Lengths vary from one micro-batch to the next, so pipeline stages exchange shapes (``variable_seq_lengths``);
    Megatron-Core then asks for
    the all-to-all MoE dispatcher even of a dense model. Interleaved schedules must not batch their sends: two sends to one
    peer would be matched in the wrong order.
    """
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    engine = uses_transformer_engine()
    full = training.recompute_granularity == "full"
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.kv_channels,
        layernorm_epsilon=architecture.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.add_qkv_bias,
        qk_layernorm=architecture.qk_layernorm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=architecture.initializer_range,
        params_dtype=dtype,
        bf16=training.bf16,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_pipeline_size(architecture, parallel),
        context_parallel_size=parallel.context_parallel_size,
        pipeline_dtype=dtype,
        variable_seq_lengths=parallel.pipeline_model_parallel_size > 1,
        moe_token_dispatcher_type="alltoall",
        batch_p2p_comm=False,
        overlap_p2p_comm=parallel.num_layers_per_virtual_pipeline_stage is not None,
        recompute_granularity=training.recompute_granularity,
        recompute_method=training.recompute_method if full else None,
        recompute_num_layers=training.recompute_num_layers if full else None,
        # core_attn would keep more than it saves: flash attention keeps its inputs and its output only. layernorm needs
        # Transformer Engine, whose layers have no norm of their own
        recompute_modules=["mlp"] if training.recompute_granularity == "selective" else None,
        cpu_offloading=training.cpu_offloading_num_layers > 0,
        cpu_offloading_num_layers=training.cpu_offloading_num_layers,
        use_cpu_initialization=not cpu_backend.has_cuda(),
        perform_initialization=True,
        masked_softmax_fusion=False,
        bias_activation_fusion=engine,
        use_te_activation_func=not engine,  # the switch for a module of the layer spec: `models.swiglu.SwiGLU`
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=cpu_backend.has_cuda() and has_fused_weight_gradients(),
        deterministic_mode=False,
    )


def virtual_pipeline_size(architecture: ModelArchitecture, parallel: ParallelConfig) -> int | None:
    """Number of model chunks on each pipeline stage, or None without interleaving."""
    if parallel.num_layers_per_virtual_pipeline_stage is None:
        return None
    stages = parallel.pipeline_model_parallel_size * parallel.num_layers_per_virtual_pipeline_stage
    return architecture.num_layers // stages
