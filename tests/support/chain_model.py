"""A model that walks through a chain of words and so writes questions."""

from __future__ import annotations

from pathlib import Path

from tests.support.hf_models import make_hf_model

CHAIN: dict[str, tuple[str, ...]] = {
    "assistant\n": ("1. Which thing is ",),
    "1. Which thing is ": ("told ", "named ", "hidden "),
    "told ": ("here", "there"),
    "named ": ("here", "there"),
    "hidden ": ("here", "there"),
    "here": ("?",),
    "there": ("?",),
    "?": ("<|im_end|>",),
}
"""What may follow each word. Every answer is a numbered question of four words."""


def write_chain_model(folder: Path) -> Path:
    """Save a Llama that walks through `CHAIN`: each layer adds nothing, so the last token alone decides on the next."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_hf_model(folder, num_hidden_layers=2, vocab_size=272, max_position_embeddings=4096)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([word for word in CHAIN if word not in tokenizer.get_vocab()])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        embedding = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=-1)
        model.lm_head.weight.zero_()
        for word, followers in CHAIN.items():
            for place, follower in enumerate(followers):
                source, target = tokenizer.convert_tokens_to_ids([word, follower])
                model.lm_head.weight[target] += (4.0 - 0.05 * place) * embedding[source]
    model.save_pretrained(folder)
    return folder
