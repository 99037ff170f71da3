"""Chat templates in the shapes that real models use, for tests: what surrounds, trims or merges the messages."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TemplateShape:
    """A template, the special tokens it writes, and the one that ends an answer."""

    template: str
    special_tokens: tuple[str, ...]
    bos_token: str
    end_of_turn: str


CHATML = TemplateShape(
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "<|endoftext|>",
    "<|im_end|>",
)

LLAMA3 = TemplateShape(
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|begin_of_text|>",
    "<|eot_id|>",
)

MISTRAL = TemplateShape(
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}",
    ("<s>", "</s>"),
    "<s>",
    "</s>",
)

LLAMA2 = TemplateShape(
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>\nBe helpful.\n<</SYS>>\n\n' if loop.first else '') + message['content'] | trim"
    " + ' [/INST]' }}{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    ("<s>", "</s>"),
    "<s>",
    "</s>",
)

SHAPES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "llama2": LLAMA2}
