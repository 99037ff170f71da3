"""Native checkpoints in Megatron-Core's distributed format; a kill at any instant leaves the last whole one loadable.

A checkpoint is written under a temporary name and renamed when whole; the tracker file is replaced after that, old
checkpoints are deleted last. Anything that a killed run left under a temporary name is removed by the next save.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_longpo.conversion.record import (
    RELEASE,
    TRACKER_FILE,
    ModelRecord,
    copy_assets,
    find_iteration,
    sync_folder,
    write_text,
)
from megatron_longpo.conversion.safe_metadata import COMMON_FILE, check_metadata, read_metadata
from megatron_longpo.models.gpt import LogProbGPTModel
from megatron_longpo.models.lora import has_adapters
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.training.optimizer_state import after_load, before_load, sharded_state
from megatron_longpo.utils.errors import UserError

CONFIG_FILE = "config.json"
_EXTRA_STATE = "_extra_state"


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What of the progress must survive a restart. Learning rate and data order are functions of it.

    Attributes:
        iteration: finished iterations.
        consumed_samples: pairs drawn from the global stream.
    """

    iteration: int = 0
    consumed_samples: int = 0


def model_state(model: Sequence[LogProbGPTModel]) -> dict[str, Any]:
    """Sharded state of this rank's model chunks, by chunk; of chunks with adapters, the adapters' alone."""
    if len(model) == 1:
        return {"model": _chunk_state(model[0])}
    return {f"model{index}": _chunk_state(chunk) for index, chunk in enumerate(model)}


def _chunk_state(chunk: LogProbGPTModel) -> dict[str, Any]:
    state = chunk.sharded_state_dict()
    if not has_adapters(chunk):
        return state
    return {name: state[name] for name, parameter in chunk.named_parameters() if parameter.requires_grad}


def gather_weights(model: Sequence[DistributedDataParallel]) -> None:
    """Gather the weights of the last update, which wait for the next forward pass where gathering overlaps with it.

    Parallel: the data-parallel group.
    """
    for chunk in model:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def load_weights(model: Sequence[LogProbGPTModel], path: str) -> None:
    """Load weights from a native checkpoint of any layout.

    Raises:
        UserError: if there is none, or it would run code.

    Parallel: all ranks; each reads its shards.
    """
    folder = _readable_iteration(path)
    loaded = dist_checkpointing.load(_without_extra_states(model_state(model)), str(folder))
    _load_model(model, loaded)


def _readable_iteration(path: str) -> Path:
    folder = find_iteration(Path(path))
    check_metadata(folder)
    version = importlib.metadata.version("megatron-core")
    # 0.19 keeps what is common to all ranks among the shards; 0.16 reads it from a file of its own, as 0.19 still can
    if not (folder / COMMON_FILE).exists() and int(version.split(".")[1]) < 19:
        raise UserError(
            f"{folder}: written by Megatron-Core 0.19, which this one ({version}) cannot read; "
            "go on with 0.19, or export the weights with checkpoint_conversion/mcore_to_hf.py and convert those"
        )
    return folder


def _without_extra_states(state: dict[str, Any]) -> dict[str, Any]:
    """A model's sharded state as a load asks for it.

    An extra state is where Transformer Engine keeps its FP8 scales: here it is always empty. Which modules have one depends on
    its version, and a checkpoint that was made without it lacks most of them.
    """
    return {
        chunk: {name: shard for name, shard in shards.items() if not name.endswith(_EXTRA_STATE)}
        for chunk, shards in state.items()
    }


def _load_model(model: Sequence[LogProbGPTModel], loaded: dict[str, Any]) -> None:
    for index, chunk in enumerate(model):
        weights = loaded["model" if len(model) == 1 else f"model{index}"]
        empty = {name: None for name in chunk.state_dict() if name.endswith(_EXTRA_STATE)}
        # a load fails by itself where the checkpoint lacks something that was asked for
        chunk.load_state_dict({**weights, **empty}, strict=not has_adapters(chunk))


def _random_state(state: ParallelState) -> ShardedObject:
    """Random states of this model-parallel position: the generator's and the tracker's.

    The key names the sizes, so that another layout, to which these states mean nothing, does not find them.
    """
    position = (state.pp_group.rank(), state.tp_group.rank())
    sizes = (state.pp_group.size(), state.tp_group.size())
    states = {"torch": torch.get_rng_state(), "tracker": dict(get_cuda_rng_tracker().get_states())}
    return ShardedObject(f"rng_pp{sizes[0]}_tp{sizes[1]}", states, sizes, position, replica_id=state.dp_cp_group.rank())


class Checkpointer:
    """Saves and loads everything that a run needs to go on."""

    def __init__(
        self,
        model: Sequence[DistributedDataParallel],
        optimizer: Any,
        state: ParallelState,
        record: ModelRecord,
        config_text: str,
    ) -> None:
        """Take what is saved.

        Args:
            model: wrapped model chunks.
            optimizer: Megatron-Core optimizer over them.
            state: groups.
            record: model record that goes into each checkpoint.
            config_text: the resolved configuration, as JSON.
        """
        self._wrapped = model
        self._chunks: list[LogProbGPTModel] = [chunk.module for chunk in model]
        self._optimizer, self._state, self._record, self._config = optimizer, state, record, config_text

    def save(self, directory: str, train_state: TrainState, assets_from: str, keep: int | None = None) -> Path:
        """Write a checkpoint and point the tracker at it.

        Args:
            directory: where checkpoints lie.
            train_state: progress.
            assets_from: checkpoint directory whose ``hf/`` (tokenizer, templates) goes along.
            keep: number of newest checkpoints to keep; None keeps all.

        Returns:
            The checkpoint's folder.

        Parallel: all ranks.
        """
        gather_weights(self._wrapped)
        root, name = Path(directory), f"iter_{train_state.iteration:07d}"
        partial = root / f".saving-{name}"
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            for left_over in root.glob(".saving-*"):
                shutil.rmtree(left_over)
            partial.mkdir()
        dist.barrier()
        dist_checkpointing.save(self._state_dict(train_state, is_loading=False), str(partial))
        dist.barrier()
        if dist.get_rank() == 0:
            self._record.write(partial)
            write_text(partial / CONFIG_FILE, self._config)
            copy_assets(Path(assets_from), root)
            _publish(root, partial, name, train_state.iteration, keep)
        dist.barrier()
        return root / name

    def _state_dict(self, train_state: TrainState, *, is_loading: bool) -> dict[str, Any]:
        sharded = model_state(self._chunks)
        if is_loading:
            sharded = _without_extra_states(sharded)
            before_load(self._optimizer)
        optimizer = sharded_state(self._optimizer, sharded, is_loading=is_loading)
        progress = {"train_state": dataclasses.asdict(train_state)} if not is_loading else {}
        return {**sharded, "optimizer": optimizer, "rng": _random_state(self._state), **progress}

    def load(self, directory: str) -> TrainState:
        """Load the checkpoint that the tracker names, written in any layout.

        Returns:
            The progress to go on from.

        Raises:
            UserError: if it is not whole or would run code.

        Parallel: all ranks.
        """
        folder = _readable_iteration(directory)
        wanted = self._state_dict(TrainState(), is_loading=True)
        if not any(key.startswith(wanted["rng"].key + "/") for key in read_metadata(folder).state_dict_metadata):
            del wanted["rng"]  # written in another layout
        loaded = dist_checkpointing.load(wanted, str(folder))
        _load_model(self._chunks, loaded)
        self._optimizer.load_state_dict(loaded["optimizer"])
        after_load(self._optimizer)
        if "rng" in loaded:
            torch.set_rng_state(loaded["rng"]["torch"])
            get_cuda_rng_tracker().set_states(loaded["rng"]["tracker"])
        return TrainState(**loaded["train_state"])


def _publish(root: Path, partial: Path, name: str, iteration: int, keep: int | None) -> None:
    for file in partial.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(partial)
    if (root / name).exists():  # of a run that was rolled back by editing the tracker, which therefore names another
        shutil.rmtree(root / name)
    partial.rename(root / name)
    sync_folder(root)
    write_text(root / TRACKER_FILE, str(iteration))
    sync_folder(root)
    # checkpoints with higher numbers are of a run that was rolled back: not newer, and overwritten when this run gets there
    older = sorted(folder for folder in root.glob("iter_*") if folder.name < name)
    for old in older[: len(older) - (keep - 1)] if keep else []:
        shutil.rmtree(old)


def has_checkpoint(directory: str | None) -> bool:
    """Whether a directory holds a training checkpoint to resume from."""
    if directory is None or not (Path(directory) / TRACKER_FILE).exists():
        return False
    if (Path(directory) / TRACKER_FILE).read_text(encoding="utf-8").strip() == RELEASE:
        raise UserError(
            f"{directory}: holds converted weights without training state; give it as --pretrained-checkpoint, not as --load"
        )
    return True


def check_save_directory(save: str | None, load: str | None) -> None:
    """Refuse to start anew where an earlier run's checkpoints, or converted weights, lie.

    Overwriting the checkpoint that the tracker names could not be done at one instant, and is seldom meant.

    Raises:
        UserError: if ``save`` has a tracker and is not what the run resumes from.
    """
    if save is None or not (Path(save) / TRACKER_FILE).exists():
        return
    if load is None or Path(save).resolve() != Path(load).resolve():
        raise UserError(f"--save {save}: holds checkpoints already; resume from them with --load {save}, or give another folder")
