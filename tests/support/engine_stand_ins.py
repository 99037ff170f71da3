"""Stand-ins for Transformer Engine's modules as Megatron-Core wraps them: the same parameters, computed by Megatron-Core's own.

Each has an extra state, as Transformer Engine's have: an empty tensor outside FP8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_longpo.models.norm import RMSNorm


class ExtraState:
    """What Transformer Engine's modules add to their state."""

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor | None) -> None:
        assert state is None or state.numel() == 0


class Norm(ExtraState, RMSNorm):
    """``TENorm``."""


class NormLinear(ExtraState, ColumnParallelLinear):
    """``TELayerNormColumnParallelLinear``: normalises its input with a weight of its own first."""

    def __init__(
        self, input_size: int, output_size: int, *, config: Any, init_method: Callable[..., Any], gather_output: bool,
        bias: bool, skip_bias_add: bool, is_expert: bool, skip_weight_param_allocation: bool = False,
        tp_comm_buffer_name: str | None = None, tp_group: Any = None, stride: int = 1, name: str | None = None,
    ) -> None:  # fmt: skip
        assert (gather_output, is_expert, skip_weight_param_allocation) == (False, False, False)
        super().__init__(
            input_size, output_size, config=config, init_method=init_method, bias=bias, gather_output=False,
            skip_bias_add=skip_bias_add, tp_group=tp_group, stride=stride,
        )  # fmt: skip
        assert config.normalization == "RMSNorm"
        self.eps = config.layernorm_epsilon
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        normal = torch.nn.functional.rms_norm(x, x.shape[-1:], self.layer_norm_weight, self.eps)
        return super().forward(normal)


class RowLinear(ExtraState, RowParallelLinear):
    """``TERowParallelLinear``."""

    def __init__(
        self, input_size: int, output_size: int, *, config: Any, init_method: Callable[..., Any], bias: bool,
        input_is_parallel: bool, skip_bias_add: bool, is_expert: bool, tp_comm_buffer_name: str | None = None,
        tp_group: Any = None, name: str | None = None,
    ) -> None:  # fmt: skip
        assert (input_is_parallel, is_expert) == (True, False)
        super().__init__(
            input_size, output_size, config=config, init_method=init_method, bias=bias, input_is_parallel=True,
            skip_bias_add=skip_bias_add, tp_group=tp_group,
        )  # fmt: skip


class Attention(ExtraState, torch.nn.Module):
    """``TEDotProductAttention`` without context parallelism: causal, ``[s, b, n, d]`` in, flat heads out."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str,
        attention_dropout: float | None = None, softmax_scale: float | None = None, cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert (attn_mask_type, attention_type, config.attention_dropout) == (AttnMaskType.causal, "self", 0.0)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: None, *, attn_mask_type: AttnMaskType) -> Tensor:
        assert attn_mask_type is AttnMaskType.causal
        heads_second = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(*heads_second, is_causal=True, enable_gqa=True)
        return out.permute(2, 0, 1, 3).flatten(2)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}  # as Megatron-Core's wrapper, whose state is no part of a checkpoint


@contextlib.contextmanager
def transformer_engine() -> Iterator[None]:
    """Inside the context, models are built as where Transformer Engine and a GPU are: of Megatron-Core's own specs for it."""
    from megatron.core.extensions import transformer_engine as wrappers
    from megatron.core.extensions import transformer_engine_spec_provider as provider
    from megatron.core.models.gpt import gpt_layer_specs

    from megatron_longpo.models import layer_spec, transformer_config

    with contextlib.ExitStack() as patches:
        for module in (wrappers, provider):
            for name, stand_in in (
                ("TENorm", Norm),
                ("TELayerNormColumnParallelLinear", NormLinear),
                ("TERowParallelLinear", RowLinear),
                ("TEDotProductAttention", Attention),
            ):
                patches.enter_context(mock.patch.object(module, name, stand_in))
        patches.enter_context(mock.patch.object(provider, "is_te_min_version", return_value=True))
        patches.enter_context(mock.patch.object(gpt_layer_specs, "TESpecProvider", provider.TESpecProvider, create=True))
        for module in (layer_spec, transformer_config):
            patches.enter_context(mock.patch.object(module, "uses_transformer_engine", return_value=True))
        yield
