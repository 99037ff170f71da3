"""Native checkpoint of a run with LoRA -> a folder in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.conversion.adapters import AdapterReader
from megatron_longpo.conversion.export_folder import existing_export, finish_export, origin_of, start_export, write_assets
from megatron_longpo.conversion.fingerprint import digest_tensor, dtype_name, hash_tensors
from megatron_longpo.conversion.model_card import adapter_card
from megatron_longpo.conversion.record import ModelRecord
from megatron_longpo.conversion.safetensors_io import write_file
from megatron_longpo.conversion.workers import Workers
from megatron_longpo.utils.files import write_text

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def export_adapters(folder: Path, record: ModelRecord, target: Path, dtype: str | None, workers: Workers) -> str:
    """Write the adapters as PEFT would save them, with tokenizer and configuration; again only if they have changed.

    Args:
        folder: the checkpoint of one iteration.
        record: its record, with adapters.
        target: folder to make.
        dtype: torch dtype name of the exported matrices; default: the one that they were trained in.
        workers: the processes; the first one does it all, adapters being small.

    Returns:
        The fingerprint of the exported matrices.

    Raises:
        UserError: if the checkpoint is not whole, or ``target`` holds something else.

    Parallel: all workers.
    """
    origin = origin_of(folder, form="adapters", dtype=dtype)
    found = existing_export(target, origin, workers)
    if found is not None:
        return found
    tensors = _peft_tensors(AdapterReader(folder, record), dtype)
    fingerprint = hash_tensors(digest_tensor(name, tensor) for name, tensor in tensors.items())
    partial = start_export(target, workers)
    if workers.is_first:
        stored = dtype_name(next(iter(tensors.values())).dtype)
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        for _ in write_file(partial / ADAPTER_WEIGHTS, layout, tensors.items()):
            pass
        write_assets(folder, partial, record, record.dtype)
        write_text(partial / ADAPTER_CONFIG, json.dumps(_peft_config(record), indent=2, sort_keys=True) + "\n")
        write_text(partial / "README.md", adapter_card(record, stored, fingerprint))
        finish_export(partial, target, origin, fingerprint)
    workers.barrier()
    return fingerprint


def _peft_tensors(reader: AdapterReader, dtype: str | None) -> dict[str, Tensor]:
    tensors = {}
    for module in reader.modules:
        for name, matrix in zip("AB", reader.matrices(module), strict=True):
            stored = matrix if dtype is None else matrix.to(getattr(torch, dtype))
            tensors[f"base_model.model.{module}.lora_{name}.weight"] = stored.contiguous()
    return tensors


def _peft_config(record: ModelRecord) -> dict[str, Any]:
    adapters = record.adapters
    assert adapters is not None
    return {
        "auto_mapping": None,
        "base_model_name_or_path": record.source,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(adapters.alpha) if adapters.alpha.is_integer() else adapters.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapters.rank,
        "revision": None,
        "target_modules": list(adapters.target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
