"""The model record of a native checkpoint, and the files around it.

::

    DIR/
      latest_checkpointed_iteration.txt   "release" (converted weights) or an iteration number, as in Megatron-LM
      release/ or iter_0000010/           the distributed checkpoint, with the record in longpo_model.json
      hf/                                 config.json, tokenizer, templates: what mcore_to_hf gives back
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import write_text

RECORD_FILE = "longpo_model.json"
TRACKER_FILE = "latest_checkpointed_iteration.txt"
RELEASE = "release"
ASSETS = "hf"
_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """What a checkpoint of a run with LoRA says about its adapters, the only weights in it.

    Attributes:
        rank: rank of the adapters.
        alpha: their output is multiplied by alpha / rank.
        target_modules: Hugging Face names of the linears that have one.
        base: the native checkpoint that holds all other weights.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What a checkpoint says about its weights.

    Attributes:
        architecture: shape and numerics, with the RoPE base and the longest position that the weights were really trained with.
        dtype: torch dtype name that most tensors have in Hugging Face's form.
        other_dtypes: the Hugging Face tensors that have another one.
        weights_sha256: fingerprint of the weights in Hugging Face's form (`fingerprint.hash_tensors`); None after training.
        base_weights_sha256: fingerprint of the weights that training started from; None before training.
        source: the Hugging Face folder that the first weights came from.
        assets_sha256: fingerprint of the files in ``hf/``.
        training: what the model card tells about the training: label -> value; empty before training.
        adapters: what the checkpoint's adapters are, if it holds those in place of a whole model.
    """

    architecture: ModelArchitecture
    dtype: str
    other_dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    weights_sha256: str | None = None
    base_weights_sha256: str | None = None
    source: str
    assets_sha256: str
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapters: AdapterRecord | None = None

    def write(self, folder: Path) -> None:
        """Write the record into an iteration's folder."""
        write_text(folder / RECORD_FILE, json.dumps({"version": _VERSION, **dataclasses.asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ModelRecord:
        """Read the record of an iteration's folder.

        Raises:
            UserError: if there is none, or it was written by another version.
        """
        path = folder / RECORD_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("version")
            if version != _VERSION:
                raise UserError(f"{path} has version {version}; this release reads version {_VERSION}")
            adapters = values.pop("adapters", None)
            if adapters is not None:
                adapters = AdapterRecord(**{**adapters, "target_modules": tuple(adapters["target_modules"])})
            return cls(**{**values, "architecture": ModelArchitecture.from_dict(values["architecture"]), "adapters": adapters})
        except FileNotFoundError:
            raise UserError(
                f"{path} does not exist; native checkpoints are made by checkpoint_conversion/hf_to_mcore.py"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged: {error}") from None

    def after_training(self, architecture: ModelArchitecture, training: dict[str, Any]) -> ModelRecord:
        """The record of weights that training has made of this record's."""
        base = self.weights_sha256 or self.base_weights_sha256
        return dataclasses.replace(
            self, architecture=architecture, weights_sha256=None, base_weights_sha256=base, training=training
        )


def whole_model(folder: Path) -> ModelRecord:
    """The record of an iteration's folder that holds a whole model.

    Raises:
        UserError: if it holds adapters only.
    """
    record = ModelRecord.read(folder)
    if record.adapters is not None:
        raise UserError(
            f"{folder}: holds LoRA adapters, not a whole model; merge them with checkpoint_conversion/mcore_to_hf.py --merge "
            "and convert the result with hf_to_mcore.py"
        )
    return record


def find_iteration(path: Path, iteration: int | None = None) -> Path:
    """The folder of one iteration.

    Args:
        path: a checkpoint directory (the one with the tracker), or already an iteration's folder.
        iteration: which one; default: the one that the tracker names.

    Raises:
        UserError: if there is none.
    """
    if (path / ".metadata").exists():
        return path
    tracker = path / TRACKER_FILE
    if iteration is not None:
        name = f"iter_{iteration:07d}"
    elif tracker.exists():
        text = tracker.read_text(encoding="utf-8").strip()
        name = text if text == RELEASE else f"iter_{int(text):07d}" if text.isdigit() else ""
        if not name:
            raise UserError(f"{tracker} holds {text!r}, neither an iteration nor {RELEASE!r}")
    else:
        raise UserError(f"{path} is not a native checkpoint: it has no {TRACKER_FILE}")
    if not (path / name / ".metadata").exists():
        raise UserError(f"{path / name} is not a distributed checkpoint: it has no .metadata")
    return path / name


def copy_assets(source: Path, target: Path) -> None:
    """Copy ``hf/`` from one checkpoint directory to another, at once; nothing is done where the target has one."""
    if (target / ASSETS).exists() or not (source / ASSETS).exists():
        return
    partial = target / f"{ASSETS}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / ASSETS, partial)
    os.rename(partial, target / ASSETS)


def sync_folder(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
