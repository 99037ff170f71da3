"""LoRA in a run: what its checkpoints say of it, and what a resumed run must have in common with them."""

from __future__ import annotations

from pathlib import Path

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.conversion.record import AdapterRecord, ModelRecord, find_iteration
from megatron_longpo.models.lora_targets import hugging_face_names
from megatron_longpo.training.checkpoint import has_checkpoint
from megatron_longpo.utils.errors import UserError


def adapter_record(config: RunConfig) -> AdapterRecord | None:
    """What the checkpoints of a run say of its adapters; None if every weight is trained."""
    lora = config.lora
    if lora.lora_rank is None:
        return None
    return AdapterRecord(
        rank=lora.lora_rank,
        alpha=lora.lora_alpha,
        target_modules=hugging_face_names(lora.lora_target_modules),
        base=str(Path(str(config.model.pretrained_checkpoint)).resolve()),
    )


def check_adapters(config: RunConfig, base: ModelRecord) -> None:
    """Refuse a run whose checkpoints could not be put together with their base again, or that resumes another kind of run.

    Args:
        config: the run.
        base: record of --pretrained-checkpoint.

    Raises:
        UserError: if the base carries no hash of its weights, or --load has other adapters or another base.
    """
    adapters = adapter_record(config)
    if adapters is not None and base.weights_sha256 is None:
        raise UserError(
            f"--pretrained-checkpoint {config.model.pretrained_checkpoint}: the base of --lora-rank needs the hash of its "
            "weights, which a training checkpoint lacks; export it with checkpoint_conversion/mcore_to_hf.py and convert that "
            "with hf_to_mcore.py"
        )
    load = config.checkpoint.load
    if not has_checkpoint(load):
        return
    saved = ModelRecord.read(find_iteration(Path(str(load))))
    ours, theirs = _essentials(adapters), _essentials(saved.adapters)
    if ours != theirs:
        raise UserError(f"--load {load}: was trained with {theirs}, this run asks for {ours}; give the same --lora flags")
    if adapters is not None and saved.base_weights_sha256 != base.weights_sha256:
        raise UserError(
            f"--load {load}: holds adapters of {saved.source} with weights {saved.base_weights_sha256}, and "
            f"--pretrained-checkpoint {config.model.pretrained_checkpoint} has weights {base.weights_sha256}; give the first base"
        )


def _essentials(adapters: AdapterRecord | None) -> str:
    if adapters is None:
        return "no adapters"
    return f"adapters of rank {adapters.rank} and alpha {adapters.alpha:g} on {', '.join(adapters.target_modules)}"
