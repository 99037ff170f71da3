"""Small tokenizers, records and datasets for tests; everything is made here, nothing is downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
from megatron_longpo.data.record import PreferenceRecord, Turn
from megatron_longpo.data.tokenizer import TokenizerSpec
from tests.support.chat_templates import TemplateShape

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "with",
    "on",
    "by",
    "from",
    "at",
    "which",
    "river",
    "stone",
    "engine",
    "letter",
    "garden",
    "winter",
    "captain",
    "harbour",
    "number",
    "history",
    "machine",
    "question",
    "answer",
    "because",
    "however",
    "early",
    "later",
    "found",
    "made",
    "carried",
    "turned",
    "light",
    "water",
    "green",
    "old",
)


def make_tokenizer(
    folder: str | Path,
    vocab_size: int = 512,
    template: str = CHATML_TEMPLATE,
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos_token: str = "<|endoftext|>",
    eos_token: str = "<|im_end|>",
    adds_bos: bool = False,
) -> Path:
    """Write a Hugging Face tokenizer folder: byte-level BPE trained on made-up text, with a chat template.

    ``special_tokens`` have the first ids, in their order; the vocabulary has at most ``vocab_size`` entries (at least 256 and
    the special tokens). With ``adds_bos`` the tokenizer puts a beginning-of-sequence token before what it encodes, as Llama's
    does, unless it is told not to add special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator([make_text(rng, 200) for _ in range(20)], trainer)
    if adds_bos:
        bos = (bos_token, tokenizer.token_to_id(bos_token))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos_token} $A", special_tokens=[bos])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos_token, eos_token=eos_token, pad_token=special_tokens[0]
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(str(folder))
    return Path(folder)


def make_sentencepiece_like(folder: str | Path, dialect: str, shape: TemplateShape) -> Path:
    """Write a Hugging Face tokenizer folder as those of Llama 2 and the first Mistral models are.

    Merges run over text in which a mark stands for each space and tokens hold the mark at their start only; what is not in the
    vocabulary is spelt in bytes. ``dialect`` is how marks get there: a normaliser (``prepend``), or a pre-tokeniser that does
    (``metaspace-split``) or does not (``metaspace``) keep words apart.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *shape.special_tokens, *spelt], show_progress=False)
    rng = random.Random(0)
    texts = [f"{make_text(rng, 200)}  {make_text(rng, 20)}   [INST] [/INST] <<SYS>>" for _ in range(20)]
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in spelt]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if dialect == "prepend":
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=dialect == "metaspace-split")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", *shape.special_tokens)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=shape.bos_token, eos_token=shape.end_of_turn, unk_token="<unk>"
    )
    wrapped.chat_template = shape.template
    wrapped.save_pretrained(str(folder))
    return Path(folder)


def make_text(rng: random.Random, num_words: int) -> str:
    """Sentences of random words."""
    words = [rng.choice(WORDS) for _ in range(num_words)]
    for i in range(0, num_words, 11):
        words[i] = words[i].capitalize()
    for i in range(10, num_words, 11):
        words[i] += "."
    return " ".join(words)


def make_record(rng: random.Random, document_id: str, num_turns: int, num_words: int = 120) -> PreferenceRecord:
    """A random document; each turn's short context is a part of it."""
    text = make_text(rng, num_words)
    turns = []
    for _ in range(num_turns):
        start = rng.randrange(len(text) // 2)
        answers = [make_text(rng, rng.randrange(3, 15)) for _ in range(2)]
        turns.append(Turn(text[start : start + len(text) // 4], f"Tell me: {make_text(rng, 6)}?", answers[0], answers[1]))
    return PreferenceRecord(document_id, text, tuple(turns), {})


def make_records(
    path: str | Path, num_documents: int, num_turns: int, seed: int = 0, num_words: int | Sequence[int] = 120
) -> Path:
    """Write a JSON Lines file of random documents; several numbers of words take turns."""
    rng = random.Random(seed)
    words = [num_words] if isinstance(num_words, int) else num_words
    records = [make_record(rng, f"document-{i}", num_turns, words[i % len(words)]) for i in range(num_documents)]
    Path(path).write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
    return Path(path)


def make_dataset(
    prefix: str | Path,
    num_documents: int = 4,
    num_turns: int = 2,
    seed: int = 0,
    vocab_size: int = 512,
    num_words: int | Sequence[int] = 120,
    seq_length: int = 4096,
    tokenizer: str | Path | None = None,
) -> PreferenceDataset:
    """Make a tokenised dataset at ``prefix``, through the product's own preprocessing.

    The records go to ``PREFIX.jsonl``; the tokenizer, unless one is given, to ``PREFIX-tokenizer/``.
    """
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    records = make_records(f"{prefix}.jsonl", num_documents, num_turns, seed, num_words)
    folder = Path(tokenizer) if tokenizer else make_tokenizer(f"{prefix}-tokenizer", vocab_size)
    preprocess(
        PreprocessOptions(
            inputs=(str(records),), output_prefix=str(prefix), tokenizer=TokenizerSpec(str(folder)), seq_length=seq_length
        )
    )
    return PreferenceDataset(str(prefix))
