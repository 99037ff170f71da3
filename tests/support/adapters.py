"""Adapters whose every matrix matters: as they begin, ``B`` is zero and no gradient reaches ``A``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def fill_adapters(chunks: Sequence[Any]) -> None:
    """Give each ``B`` values that depend on the layer and the part alone, whatever the layout and the other modules."""
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            matrices = sorted(pair for pair in layer.named_parameters() if pair[0].endswith("_B"))
            for number, (_, parameter) in enumerate(matrices):
                share = parameter.shape[0]
                divided = getattr(parameter, "tensor_model_parallel", False)
                group = chunk.pg_collection.tp
                rows = share * group.size() if divided else share
                generator = torch.Generator().manual_seed(1000 * layer.layer_number + number)
                whole = 0.1 * torch.randn(rows, parameter.shape[1], generator=generator)
                start = group.rank() * share if divided else 0
                parameter.data.copy_(whole[start : start + share])
