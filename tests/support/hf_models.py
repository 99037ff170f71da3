"""Tiny Hugging Face models of every supported family, with random weights that make each part of the model matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB_SIZE = 320

# One variant a row: class names in transformers (config, model) and what differs from COMMON.
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_theta": 10000.0}),
    "llama3-rope": ("Llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING}),
    "linear-rope": ("Llama", {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("Mistral", {"rope_theta": 1000000.0, "sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"rope_theta": 1000000.0, "use_sliding_window": False}),
    "qwen2-tied": ("Qwen2", {"rope_theta": 1000000.0, "use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_theta": 1000000.0, "use_sliding_window": False, "head_dim": 32}),
    "smollm2": (
        "Llama",
        {
            "rope_theta": 100000.0,
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer (256 bytes, three special tokens) with a ChatML template to ``folder``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def randomise(model: Any, seed: int) -> None:
    """Give every parameter of a torch module a size at which its effect on the logits is plain."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                values = 1.0 + 0.2 * noise
            elif parameter.dim() == 1:
                values = 0.2 * noise
            elif "embed_tokens" in name:
                values = 0.5 * noise
            else:
                values = noise / parameter.shape[1] ** 0.5
            parameter.copy_(values)


def make_hf_model(
    folder: str | Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Save a random model as a Hugging Face folder of safetensors and return the folder.

    Args:
        folder: Where to save it.
        family: A key of `VARIANTS`.
        seed: Seed of the weights.
        dtype: Torch dtype name of the stored weights.
        max_shard_size: Passed to ``save_pretrained``; small values give several shards.
        tokenizer: Whether to add a byte-level tokenizer with a chat template.
        **overrides: Fields of the Hugging Face configuration.
    """
    import torch
    import transformers

    prefix, fields = VARIANTS[family]
    config = getattr(transformers, f"{prefix}Config")(**{**COMMON, **fields, **overrides})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    randomise(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        make_tokenizer(Path(folder))
    return Path(folder)
