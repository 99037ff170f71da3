"""LoRA: low-rank adapters beside the frozen linears of a built model, in every parallel layout.

For an input ``x`` a linear gives ``W x + alpha / rank * B A x``, with ``A`` of ``[rank, in]`` and ``B`` of ``[out, rank]``. Only
the ``rank`` numbers a row between ``A`` and ``B`` cross the tensor-parallel group:

* column-parallel (query-key-value, gate-up): every rank holds ``A``, and its rows of ``B``. ``A x`` is made of the rank's rows of
  ``x`` and gathered under sequence parallelism; without it every rank computes the same and the gradient is summed.
* row-parallel (attention output, down): every rank holds its columns of ``A``, and ``B``. The parts of ``A x`` are summed, and
  scattered along the sequence under sequence parallelism.

So the matrix that every rank holds gets the whole gradient everywhere, except under sequence parallelism, where each rank sees
its own rows only and Megatron-Core sums the gradients of parameters that say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear, rms_norm

from megatron_longpo.config.schema import LoraConfig
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.models.lora_targets import LINEARS, AdaptedLinear, hugging_face_names, linear_sizes
from megatron_longpo.parallel.collectives import ProcessGroup


class Adapter(torch.nn.Module):
    """The trained matrices of one linear: ``PART_A`` and ``PART_B`` for each of its parts that has an adapter."""

    def __init__(
        self, target: AdaptedLinear, parts: Sequence[str], sizes: dict[str, tuple[int, int]], groups: int, lora: LoraConfig,
        group: ProcessGroup, *, sequence_parallel: bool,
    ) -> None:  # fmt: skip
        """Allocate the matrices on the CPU in fp32; `initialise` fills them.

        Args:
            target: the linear.
            parts: those of its parts that get an adapter.
            sizes: whole output and input width of each part.
            groups: query groups of the whole model, by which the parts of query-key-value are interleaved; 1 for other linears.
            lora: rank and alpha.
            group: the tensor-parallel group.
            sequence_parallel: whether inputs of column- and outputs of row-parallel linears are divided along the sequence.
        """
        super().__init__()
        assert lora.lora_rank is not None
        self.target, self.rank, self.scale = target, lora.lora_rank, lora.lora_alpha / lora.lora_rank
        self.group, self.sequence_parallel = group, sequence_parallel
        self.local_groups = max(1, groups // group.size())
        ranks = (group.size(), 1) if target.column_parallel else (1, group.size())
        self.rows = {part: sizes[part][0] // ranks[0] for part in target.parts}
        self.parts = tuple(part for part in target.parts if part in parts)
        for part in self.parts:
            self.register_parameter(f"{part}_A", Parameter(torch.empty(self.rank, sizes[part][1] // ranks[1])))
            self.register_parameter(f"{part}_B", Parameter(torch.zeros(self.rows[part], self.rank)))
            divided, whole = ("B", "A") if target.column_parallel else ("A", "B")
            set_tensor_model_parallel_attributes(self.matrix(part, divided), True, self.divided_axis, 1)
            self.matrix(part, whole).sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    @property
    def divided_axis(self) -> int:
        """Axis along which the tensor-parallel ranks divide their matrix: rows of ``B`` or columns of ``A``."""
        return 0 if self.target.column_parallel else 1

    def matrix(self, part: str, name: str) -> Parameter:
        """The parameter ``A`` or ``B`` of a part."""
        return getattr(self, f"{part}_{name}")

    def initialise(self, layer: int, seed: int) -> None:
        """Fill as PEFT does, the same in every layout: ``A`` uniform within ``1 / sqrt(in)``, ``B`` zero.

        Each ``A`` is drawn whole, by a generator of its own, and cut.
        """
        for part in self.parts:
            mine = self.matrix(part, "A")
            width = mine.size(1) * (1 if self.target.column_parallel else self.group.size())
            digest = hashlib.sha256(f"{seed} {layer} {part}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
            bound = 1 / math.sqrt(width)
            whole = torch.empty(self.rank, width).uniform_(-bound, bound, generator=generator)
            start = 0 if self.target.column_parallel else self.group.rank() * mine.size(1)
            mine.data.copy_(whole[:, start : start + mine.size(1)])

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the linear's output.

        Args:
            x: the linear's input, ``[s (/tp), b, in]`` or ``[s, b, in/tp]``.

        Returns:
            ``[s, b, out/tp]`` or ``[s (/tp), b, out]``, laid out as the linear's output.

        Parallel: the tensor group, ``rank`` numbers a row and part, forward or backward.
        """
        low = linear(x, torch.cat([self.matrix(part, "A") for part in self.parts])) * self.scale
        low_ranks = dict(zip(self.parts, self._exchange(low).split(self.rank, dim=-1), strict=True))
        deltas = [
            linear(low_ranks[part], self.matrix(part, "B")) if part in low_ranks else low.new_zeros(self._shape(low_ranks, rows))
            for part, rows in self.rows.items()
        ]
        if len(deltas) == 1:
            return deltas[0]
        # [s, b, rows] a part -> [s, b, groups, rows / groups] -> parts side by side inside each group
        return torch.cat([delta.unflatten(-1, (self.local_groups, -1)) for delta in deltas], dim=-1).flatten(-2)

    def _exchange(self, low: Tensor) -> Tensor:
        if self.target.column_parallel:
            if self.sequence_parallel:
                return gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True, group=self.group)
            return copy_to_tensor_model_parallel_region(low, group=self.group)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(low, group=self.group)
        return reduce_from_tensor_model_parallel_region(low, group=self.group)

    @staticmethod
    def _shape(low_ranks: dict[str, Tensor], rows: int) -> tuple[int, ...]:
        return (*next(iter(low_ranks.values())).shape[:-1], rows)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Describe the shards to a distributed checkpoint."""
        divided = "B" if self.target.column_parallel else "A"
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {f"{part}_{divided}": self.divided_axis for part in self.parts},
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )


class LoraLinear(torch.nn.Module):
    """A frozen Megatron-Core linear and its adapter, called as the linear is."""

    def __init__(self, base: torch.nn.Module, adapter: Adapter) -> None:
        """Put the adapter beside the linear; it is used until ``is_active`` is turned off."""
        super().__init__()
        self.base, self.adapter, self.is_active = base, adapter, True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output and bias, as the linear gives them."""
        output, bias = self.base(x)
        return (output + self.adapter(self._linear_input(x)) if self.is_active else output), bias

    def _linear_input(self, x: Tensor) -> Tensor:
        """What the linear itself multiplies: Transformer Engine's column-parallel linears normalise their input first."""
        weight = getattr(self.base, "layer_norm_weight", None)
        return x if weight is None else rms_norm(x, (x.size(-1),), weight, self.base.eps)  # type: ignore[arg-type]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Describe the adapter to a distributed checkpoint, and nothing of the linear: it does not change."""
        return self.adapter.sharded_state_dict(f"{prefix}adapter.", sharded_offsets, metadata)


def add_adapters(chunks: Sequence[LogProbGPTModel], lora: LoraConfig, seed: int) -> None:
    """Freeze model chunks, whose weights are loaded, and put adapters beside the linears that ``lora`` names."""
    targets = hugging_face_names(lora.lora_target_modules)
    for chunk in chunks:
        chunk.requires_grad_(False)
        for layer in chunk.decoder.layers:
            for target in LINEARS:
                if set(target.parts) & set(targets):
                    owner = getattr(layer, target.owner)
                    wrapped = _wrap(getattr(owner, target.name), target, targets, chunk, lora, layer.layer_number, seed)
                    setattr(owner, target.name, wrapped)
        if chunk.pre_process:
            chunk.embedding.register_forward_hook(_start_graph)


def _wrap(
    base: torch.nn.Module, target: AdaptedLinear, targets: Sequence[str], chunk: LogProbGPTModel, lora: LoraConfig,
    layer_number: int, seed: int,
) -> LoraLinear:  # fmt: skip
    architecture = chunk.architecture
    groups = architecture.num_query_groups if target.name == "linear_qkv" else 1
    sequence_parallel = chunk.config.sequence_parallel
    sizes, group = linear_sizes(architecture), chunk.pg_collection.tp
    adapter = Adapter(target, targets, sizes, groups, lora, group, sequence_parallel=sequence_parallel)
    adapter.initialise(layer_number, seed)
    weight = next(base.parameters())
    return LoraLinear(base, adapter.to(weight.device, weight.dtype))


def _start_graph(module: torch.nn.Module, arguments: tuple, hidden: Tensor) -> Tensor:
    """Let gradients reach the first layer: a recomputed layer is no part of the graph when its input has no gradient."""
    return hidden.requires_grad_() if torch.is_grad_enabled() else hidden


def has_adapters(chunk: torch.nn.Module) -> bool:
    """Whether `add_adapters` was called on a model chunk."""
    return any(isinstance(module, LoraLinear) for module in chunk.modules())


@contextlib.contextmanager
def base_alone(chunks: Sequence[LogProbGPTModel], architecture: ModelArchitecture) -> Iterator[None]:
    """Inside the context the chunks compute without their adapters, with the RoPE settings of ``architecture``."""
    wrapped = [module for chunk in chunks for module in chunk.modules() if isinstance(module, LoraLinear)]
    try:
        for module in wrapped:
            module.is_active = False
        for chunk in chunks:
            chunk.rotate_as(architecture)
        yield
    finally:
        for module in wrapped:
            module.is_active = True
        for chunk in chunks:
            chunk.rotate_as(chunk.architecture)
