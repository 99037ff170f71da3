"""The training problem that every contest works on: a random Llama-style model and one pair of a given length."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.data.pair import PreferencePair, Side

REFERENCE_ROTARY_BASE, POLICY_ROTARY_BASE = 1e6, 1e7


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Size of the model."""

    hidden: int = 512
    ffn: int = 1408
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    vocab: int = 32000

    @property
    def name(self) -> str:
        """Folder of its weights."""
        return "-".join(str(value) for value in dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and a pair of one turn.

    Attributes:
        prompt: tokens that chosen and rejected have in common.
        answer: tokens of each answer.
        short: tokens of the short context that the reference reads.
        model: the model's size.
    """

    prompt: int
    answer: int = 256
    short: int = 1024
    model: ModelShape = ModelShape()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Problem:
        """Inverse of ``dataclasses.asdict``."""
        return cls(**{**values, "model": ModelShape(**values["model"])})

    @property
    def side(self) -> int:
        """Tokens of each side."""
        return self.prompt + self.answer

    def shortened(self) -> Problem:
        """The same with a short prompt: a first step that fills the optimizer's state."""
        return dataclasses.replace(self, prompt=min(self.prompt, 128), short=min(self.short, 64))


def make_pair(problem: Problem) -> PreferencePair:
    """A pair of random tokens; the answers differ from their first token on."""
    generator = np.random.default_rng(problem.prompt)
    words = problem.model.vocab

    def tokens(count: int) -> np.ndarray:
        return generator.integers(0, words, count, dtype=np.int32)

    prompt, short = tokens(problem.prompt), tokens(problem.short)
    chosen, rejected = tokens(problem.answer), tokens(problem.answer)
    rejected[0] = (chosen[0] + 1) % words

    def side(context: np.ndarray, answer: np.ndarray) -> Side:
        return Side(np.concatenate([context, answer]), ((len(context), len(context) + len(answer)),))

    return PreferencePair(
        "random", side(prompt, chosen), side(prompt, rejected), (), (side(short, chosen),), (side(short, rejected),)
    )


def make_models(shape: ModelShape, folder: Path) -> tuple[Path, Path]:
    """The model's Hugging Face folder and native checkpoint, made where they are missing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hf, native = folder / shape.name / "hf", folder / shape.name / "native"
    if not (hf / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": REFERENCE_ROTARY_BASE},
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(hf)
    if not native.exists():
        hf_to_mcore(hf, native)
    return hf, native


def prepare(shape: dict[str, int], folder: str) -> None:
    """`make_models` as a job of its own, before several ranks want the same model."""
    make_models(ModelShape(**shape), Path(folder))
