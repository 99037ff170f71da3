"""The README.md of an exported model: what it is, and no more than is known."""

from __future__ import annotations

from pathlib import Path

from megatron_longpo.conversion.record import ModelRecord

_TRAINED = """\
These are the weights of `{base}` after training by megatron_longpo, a trainer for [LongPO](https://arxiv.org/abs/2502.13922)
(short-to-long preference optimisation) and its baselines, with the settings below. How good they are is not known here: evaluate
them before use.
"""
_CONVERTED = """\
These are the weights of `{base}` after a round trip through megatron_longpo's native checkpoint format. They were not trained.
"""
_ADAPTERS = """\
These are LoRA adapters for `{base}`, trained by megatron_longpo, a trainer for [LongPO](https://arxiv.org/abs/2502.13922)
(short-to-long preference optimisation) and its baselines, with the settings below. How good they are is not known here: evaluate
them before use.

They were trained with the RoPE base and positions of the config.json beside them, so load the base model with that configuration:

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(BASE, config=config)
model = PeftModel.from_pretrained(model, FOLDER)
```
"""


def adapter_card(record: ModelRecord, dtype: str, weights_sha256: str) -> str:
    """Write the card of adapters exported in ``dtype`` with fingerprint ``weights_sha256``."""
    base = Path(record.source).name
    sections = [
        f"---\nlibrary_name: peft\n---\n# LoRA adapters for {base}, trained by megatron_longpo\n",
        _ADAPTERS.format(base=base),
        _table("Model", _rows(record, dtype, weights_sha256)),
        _table("Training", record.training),
        "The terms of the base model apply to these weights.\n",
    ]
    return "\n".join(sections)


def model_card(record: ModelRecord, dtype: str, weights_sha256: str) -> str:
    """Write the card of a checkpoint exported in ``dtype`` with fingerprint ``weights_sha256``."""
    base = Path(record.source).name
    trained = record.base_weights_sha256 is not None
    title = f"{base}, trained by megatron_longpo" if trained else base
    sections = [
        f"---\nlibrary_name: transformers\n---\n# {title}\n",
        (_TRAINED if trained else _CONVERTED).format(base=base),
        _table("Model", _rows(record, dtype, weights_sha256)),
    ]
    if record.training:
        sections.append(_table("Training", record.training))
    sections.append("The terms of the base model apply to these weights.\n")
    return "\n".join(sections)


def _rows(record: ModelRecord, dtype: str, weights_sha256: str) -> dict[str, object]:
    architecture = record.architecture
    scaling = architecture.rope_scaling
    rows: dict[str, object] = {
        "Architecture": f"{architecture.family}, {architecture.num_layers} layers, hidden size {architecture.hidden_size}",
        "RoPE base": f"{architecture.rotary_base:g}",
        "RoPE scaling": f"{scaling.kind}, factor {scaling.factor:g}" if scaling else "none",
        "max_position_embeddings": architecture.max_position_embeddings,
        "Stored as": dtype,
        "Weights (SHA-256)": f"`{weights_sha256}`",
    }
    if record.base_weights_sha256 is not None:
        rows["Base weights (SHA-256)"] = f"`{record.base_weights_sha256}`"
    return rows


def _table(title: str, rows: dict[str, object]) -> str:
    lines = [f"## {title}", "", "| | |", "|---|---|"]
    return "\n".join(lines + [f"| {label} | {value} |" for label, value in rows.items()]) + "\n"
