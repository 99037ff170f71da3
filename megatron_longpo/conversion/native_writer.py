"""Write a distributed checkpoint piece by piece, each tensor being made only when it is written.

PyTorch's own writer does the file format; the planner here tells it what there is, and answers with a tensor when it is asked
for one. So memory holds one piece at a time, and the result is what ``megatron.core.dist_checkpointing`` would have saved.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

from megatron_longpo.conversion.layout import EXTRA_STATE_MODULES, LAYER_PREFIX, Piece
from megatron_longpo.conversion.safe_metadata import COMMON_FILE
from megatron_longpo.conversion.workers import Workers
from megatron_longpo.utils.files import write_text

# What mcore 0.16 asks for in metadata.json; 0.19 reads the first two fields and takes common.pt as its older form of common data
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
_COMMON = {"checkpoint_version": 3.0, "iteration": 0}


class _PiecePlanner(SavePlanner):
    """Plans this process's pieces, and makes each when the writer asks for it."""

    def __init__(
        self, pieces: list[Piece], dtypes: list[torch.dtype], objects: list[str], make: Callable[[Piece], Tensor]
    ) -> None:
        self._pieces = {MetadataIndex(piece.key, piece.offset): piece for piece in pieces}
        self._items = [_tensor_item(piece, dtype) for piece, dtype in zip(pieces, dtypes, strict=True)]
        self._items += [WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO) for name in objects]
        self._make = make

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing to set up: the plan is known."""

    def create_local_plan(self) -> SavePlan:
        """What this process writes."""
        return SavePlan(self._items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """The index of what all processes write."""
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Accept the coordinator's plan."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """The tensor or object to write now."""
        if write_item.type == WriteItemType.BYTE_IO:
            buffer = io.BytesIO()
            torch.save([None], buffer)  # what mcore stores for a module without extra state
            return buffer
        return self._make(self._pieces[write_item.index])


def _tensor_item(piece: Piece, dtype: torch.dtype) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(piece.key, piece.offset),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=torch.Size(piece.offset), sizes=torch.Size(piece.shape)),
            properties=TensorProperties(dtype=dtype),
            size=torch.Size(piece.global_shape),
        ),
    )


def extra_state_names(num_layers: int) -> list[str]:
    """Names of the (empty) per-layer objects that a load asks for."""
    return [
        f"{LAYER_PREFIX}{module}._extra_state/shard_{layer}_{num_layers}"
        for layer in range(num_layers)
        for module in EXTRA_STATE_MODULES
    ]


def write_native(
    folder: Path,
    pieces: list[Piece],
    dtypes: list[torch.dtype],
    num_layers: int,
    make: Callable[[Piece], Tensor],
    workers: Workers,
) -> None:
    """Write one iteration's folder.

    Args:
        folder: where; must be empty or absent.
        pieces: every piece of the model, the same list on every process.
        dtypes: the pieces' dtypes.
        num_layers: number of layers, for the per-layer objects.
        make: makes a piece's tensor; called once a piece, on the process that writes it.
        workers: the processes; each writes its share.

    Parallel: all processes exchange their plans over gloo.
    """
    mine = workers.share([dtype.itemsize * torch.Size(piece.shape).numel() for piece, dtype in zip(pieces, dtypes, strict=True)])
    planner = _PiecePlanner(
        [pieces[index] for index in mine],
        [dtypes[index] for index in mine],
        extra_state_names(num_layers) if workers.is_first else [],
        make,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what was asked for
        dcp.save({}, storage_writer=dcp.FileSystemWriter(folder), planner=planner, no_dist=workers.size == 1)
    if workers.is_first:
        torch.save(_COMMON, folder / COMMON_FILE)
        write_text(folder / "metadata.json", json.dumps(_FORMAT) + "\n")
    workers.barrier()
