"""Hugging Face's ``config.json`` <-> `ModelArchitecture`: which models are understood; the others are refused by name."""

from __future__ import annotations

from typing import Any

from megatron_longpo.models.architecture import Family, ModelArchitecture, RopeScaling
from megatron_longpo.utils.errors import UserError

CLASS_NAMES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ARCHITECTURE_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "norm_epsilon": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
}

# Fields that change what the model computes, with the values under which it stays the decoder that we build.
_HARMLESS_VALUES: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "num_local_experts": (0, None),
    "num_experts": (0, None),
}
_QWEN3_DEFAULT_HEAD_DIM = 128  # the class default in transformers; other families derive it from the hidden size
_DEFAULT_ROPE_BASE = 10000.0
_SCALING_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_MISTRAL_DEFAULT_WINDOW = 4096


def architecture_from_hf(config: dict[str, Any], where: str = "config.json") -> ModelArchitecture:
    """Read an architecture from a parsed ``config.json``.

    Args:
        config: the JSON object, as written by transformers 4 or 5.
        where: the file's name for error messages.

    Raises:
        UserError: if the model is of an unknown kind or uses something that this project does not compute.
    """
    family = _family(config, where)
    for field, accepted in _HARMLESS_VALUES.items():
        if config.get(field, accepted[0]) not in accepted:
            raise UserError(f"{where}: {field} = {config[field]!r} is not supported (only {accepted[0]!r})")
    _refuse_sliding_window(config, family, where)
    shape = {ours: _required(config, theirs, where) for ours, theirs in ARCHITECTURE_FIELDS.items()}
    heads = shape["num_attention_heads"]
    # Llama 2 files may leave the key/value heads out; the class defaults of the other families are some number, so files must say
    groups = config.get("num_key_value_heads", heads if family == "llama" else None)
    if groups is None or groups < 1 or heads % groups:
        raise UserError(f"{where}: num_key_value_heads = {groups!r} must divide num_attention_heads = {heads}")
    base, scaling = _rope(config, where)
    return ModelArchitecture(
        family=family,
        **shape,
        num_query_groups=groups,
        kv_channels=_head_dim(config, family, where),
        rotary_base=base,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        add_qkv_bias=family == "qwen2",
        qk_layernorm=family == "qwen3",
        initializer_range=config.get("initializer_range", 0.02),
    )


def architecture_to_hf(architecture: ModelArchitecture, dtype: str, source: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write an architecture as a ``config.json`` that transformers 4 and 5 read alike.

    RoPE stands in it twice: ``rope_theta`` with ``rope_scaling`` is what transformers 4 reads, ``rope_parameters`` what 5 writes.

    Args:
        architecture: what the weights really are.
        dtype: torch dtype name of the stored weights.
        source: configuration that the model came with; its other fields (token ids, dropout, ...) are kept.
    """
    config = dict(source or {})
    config.pop("dtype", None)
    config |= {theirs: getattr(architecture, ours) for ours, theirs in ARCHITECTURE_FIELDS.items()}
    config |= {
        "architectures": [CLASS_NAMES[architecture.family]],
        "model_type": architecture.family,
        "num_key_value_heads": architecture.num_query_groups,
        "head_dim": architecture.kv_channels,
        "hidden_act": "silu",
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "initializer_range": architecture.initializer_range,
        "torch_dtype": dtype,
    }
    if architecture.family in ("qwen2", "qwen3"):
        config["use_sliding_window"] = False
    if architecture.family == "mistral":
        config["sliding_window"] = None
    return config | _rope_to_hf(architecture)


def _family(config: dict[str, Any], where: str) -> Family:
    model_type = config.get("model_type")
    for family, class_name in CLASS_NAMES.items():
        if model_type == family:
            classes = config.get("architectures") or [class_name]
            if classes != [class_name]:
                raise UserError(
                    f"{where}: architectures = {classes} is not supported for model_type {family!r}; expected [{class_name!r}]"
                )
            return family
    raise UserError(f"{where}: model_type = {model_type!r} is not supported; supported are {', '.join(CLASS_NAMES)}")


def _refuse_sliding_window(config: dict[str, Any], family: Family, where: str) -> None:
    # Qwen files name a window beside use_sliding_window = false, which turns it off; a Mistral window is on unless it is null
    window = config.get("sliding_window", _MISTRAL_DEFAULT_WINDOW if family == "mistral" else None)
    if family in ("llama", "mistral") and window is not None:
        raise UserError(
            f"{where}: sliding_window = {window} is not supported (attention is full here); take a model where it is null"
        )
    if any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        raise UserError(f"{where}: layer_types other than full_attention are not supported: {sorted(set(config['layer_types']))}")


def _required(config: dict[str, Any], field: str, where: str) -> Any:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{where}: {field} is missing or not a positive number: {value!r}")
    return value


def _head_dim(config: dict[str, Any], family: Family, where: str) -> int:
    if config.get("head_dim") is not None:
        return int(_required(config, "head_dim", where))
    if family == "qwen3":
        return _QWEN3_DEFAULT_HEAD_DIM
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads:
        raise UserError(
            f"{where}: hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, and head_dim is not given"
        )
    return int(hidden // heads)


def _rope(config: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    # transformers 5 writes one object; older files have rope_theta and, where frequencies are scaled, rope_scaling, which wins
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UserError(f"{where}: rope_parameters that differ from layer to layer are not supported: {sorted(parameters)}")
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{where}: partial_rotary_factor = {parameters['partial_rotary_factor']} is not supported (only 1)")
    base = float(parameters.get("rope_theta") or config.get("rope_theta") or _DEFAULT_ROPE_BASE)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return base, None
    names = _SCALING_FIELDS.get(kind)
    if names is None:
        raise UserError(f"{where}: rope type {kind!r} is not supported; supported are default, linear, llama3")
    missing = [name for name in names if name not in parameters]
    if missing:
        raise UserError(f"{where}: rope type {kind!r} lacks {', '.join(missing)}")
    return base, RopeScaling(kind=kind, **{name: parameters[name] for name in names})


def _rope_to_hf(architecture: ModelArchitecture) -> dict[str, Any]:
    scaling = architecture.rope_scaling
    scaled: dict[str, Any] = {}
    if scaling is not None:
        scaled = {"rope_type": scaling.kind} | {name: getattr(scaling, name) for name in _SCALING_FIELDS[scaling.kind]}
    return {
        "rope_theta": architecture.rotary_base,
        "rope_scaling": scaled or None,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rotary_base} | scaled,
    }
