"""The adapters in the native checkpoint of a run with LoRA, by the Hugging Face linears that they belong to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_longpo.conversion.layout import Shape
from megatron_longpo.conversion.native_reader import NativeReader
from megatron_longpo.conversion.record import ModelRecord, find_iteration, whole_model
from megatron_longpo.models.lora_targets import adapted_parts, linear_sizes
from megatron_longpo.utils.errors import UserError


class AdapterReader:
    """Reads the matrices ``A`` (``[rank, in]``) and ``B`` (``[out, rank]``) of a checkpoint."""

    def __init__(self, folder: Path, record: ModelRecord) -> None:
        """Read the index.

        Raises:
            UserError: if the checkpoint does not hold the adapters that its record announces.
        """
        assert record.adapters is not None
        self._reader = NativeReader(folder)
        self._scale = record.adapters.alpha / record.adapters.rank
        layers, rank = record.architecture.num_layers, record.adapters.rank
        sizes = linear_sizes(record.architecture)
        expected: dict[str, Shape] = {}
        self._modules: dict[str, tuple[int, str, str]] = {}  # layer, key of A, key of B
        for layer in range(layers):
            for linear, part in adapted_parts(record.adapters.target_modules):
                rows, columns = sizes[part]
                keys = linear.key(part, "A"), linear.key(part, "B")
                expected |= {keys[0]: (layers, rank, columns), keys[1]: (layers, rows, rank)}
                self._modules[linear.hf_module(layer, part)] = (layer, *keys)
        self._shapes = expected
        self._reader.check(expected)

    @property
    def modules(self) -> list[str]:
        """Names of the linears with an adapter, in the order of the forward pass."""
        return list(self._modules)

    def matrices(self, module: str) -> tuple[Tensor, Tensor]:
        """``A`` and ``B`` of a linear, in their stored dtype."""
        layer, *keys = self._modules[module]
        shapes = [self._shapes[key][1:] for key in keys]
        first, second = (
            self._reader.read(key, (layer, 0, 0), (1, *shape)).reshape(shape) for key, shape in zip(keys, shapes, strict=True)
        )
        return first, second

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the base with its adapter in it, in fp32 or better; other weights as they are."""
        module = name.removesuffix(".weight")
        if module == name or module not in self._modules:
            return weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        first, second = (matrix.to(dtype) for matrix in self.matrices(module))
        return weight.to(dtype) + self._scale * (second @ first)


def find_base(record: ModelRecord, base: Path | None) -> Path:
    """The folder with the frozen weights of a run with LoRA.

    Args:
        record: record of the run's checkpoint.
        base: where they lie now; default: where they lay in training.

    Raises:
        UserError: if there is no such checkpoint, or it holds other weights.
    """
    assert record.adapters is not None
    path = Path(record.adapters.base) if base is None else base
    if not path.exists():
        raise UserError(f"{path}: the base of the adapters is not there; say with --base where it lies now")
    folder = find_iteration(path)
    found = whole_model(folder).weights_sha256
    if found != record.base_weights_sha256:
        raise UserError(
            f"{folder}: has weights {found}, the adapters were trained on {record.base_weights_sha256}; "
            "give their base with --base"
        )
    return folder
