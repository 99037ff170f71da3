"""Write a small Llama with random weights, and the tokenizer of the language, as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from language import WORDS

BOS, END, PAD, UNKNOWN = "<s>", "<end>", "<pad>", "<unk>"
CHAT_TEMPLATE = (
    f"{BOS}{{% for message in messages %}}{{% if message['role'] == 'user' %}}{{{{ message['content'] }}}} "
    f"{{% else %}}{{{{ message['content'] }}}}{END}{{% endif %}}{{% endfor %}}"
)
"""An answer follows its question at once: with a token in between, looking up takes this model several times as long to learn."""
LAYERS, HIDDEN, FFN, HEADS, KEY_VALUE_HEADS = 3, 128, 256, 4, 2
POSITIONS = 256
ROTARY_BASE = 1e4


def make_tokenizer():  # type: ignore[no-untyped-def]
    """Make a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (PAD, BOS, END, UNKNOWN, *WORDS)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def initialise(model) -> None:  # type: ignore[no-untyped-def]
    """Draw weights that keep words visible in the residual stream: at the usual 0.02 looking up does not emerge in time."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 1.0 if "embed" in name else weight.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * LAYERS) ** -0.5)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=POSITIONS,
        rope_theta=ROTARY_BASE,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    initialise(model)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
