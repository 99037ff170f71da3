"""Models from native checkpoints, and what the reference's log-probs depend on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from megatron_longpo.config.schema import ParallelConfig, ReferenceContext, TrainingConfig
from megatron_longpo.conversion.record import ModelRecord, find_iteration, whole_model
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.models.attention_kernels import select_kernel
from megatron_longpo.models.gpt import LogProbGPTModel, build_model
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.parallel.state import ParallelState
from megatron_longpo.reference.cache import ReferenceFingerprint
from megatron_longpo.training.checkpoint import load_weights
from megatron_longpo.utils.errors import UserError


def read_record(path: str) -> ModelRecord:
    """The model record of a native checkpoint that a model can be loaded from.

    Raises:
        UserError: if there is no such checkpoint, or it holds LoRA adapters only.
    """
    return whole_model(find_iteration(Path(path)))


def check_hardware(training: TrainingConfig, architecture: ModelArchitecture) -> None:
    """Refuse bf16 where the hardware would emulate it, and a precision or heads that attention cannot take there.

    Raises:
        UserError: on a CPU without bf16 arithmetic; on a GPU without ``--bf16``, or with heads that flash kernels do not take.
    """
    if training.bf16 and not cpu_backend.has_native_bf16():
        raise UserError("--bf16 needs a GPU, or a CPU with AMX or AVX-512 bf16; this machine has neither, so leave it out (fp32)")
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    select_kernel(cpu_backend.device().type, dtype, architecture.kv_channels)


def with_rotary_base(architecture: ModelArchitecture, base: float | None) -> ModelArchitecture:
    """The architecture with another RoPE base, if one is given."""
    return architecture if base is None else dataclasses.replace(architecture, rotary_base=base)


def build_frozen_model(
    architecture: ModelArchitecture, path: str, parallel: ParallelConfig, training: TrainingConfig, state: ParallelState
) -> list[LogProbGPTModel]:
    """A model for scoring: weights of a checkpoint, no gradients."""
    model = build_model(architecture, parallel, training, state)
    load_weights(model, path)
    for chunk in model:
        chunk.requires_grad_(False)
        chunk.eval()
    return model


def reference_fingerprint(
    dataset: PreferenceDataset,
    record: ModelRecord,
    checkpoint: str,
    architecture: ModelArchitecture,
    context: ReferenceContext,
    training: TrainingConfig,
) -> ReferenceFingerprint:
    """What a dataset's reference log-probs depend on, from records: nothing is hashed here.

    Raises:
        UserError: if the reference checkpoint carries no hash of its weights.
    """
    if record.weights_sha256 is None:
        raise UserError(
            f"{checkpoint}: a reference needs the hash of its weights, which a training checkpoint lacks; "
            "export it with checkpoint_conversion/mcore_to_hf.py and convert that with hf_to_mcore.py"
        )
    scaling = architecture.rope_scaling
    rope = {"base": architecture.rotary_base, "scaling": dataclasses.asdict(scaling) if scaling else None}
    tokenizer = dataset.manifest.tokenizer
    return ReferenceFingerprint(
        data=dataset.manifest.data_hash,
        tokenizer=str(tokenizer.fingerprint),
        template=str(tokenizer.template_fingerprint),
        weights=record.weights_sha256,
        rope=json.dumps(rope, sort_keys=True),
        context=context,
        precision=str(torch.bfloat16 if training.bf16 else torch.float32).removeprefix("torch."),
    )
