"""The commands of the stages: their scripts, and what the loop must know of their flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_longpo.config.fields import group_fields
from megatron_longpo.evolution.config import Flags
from megatron_longpo.evolution.stages import Artifact

SCRIPTS = {
    "convert": "checkpoint_conversion/hf_to_mcore.py",
    "generate": "tools/generate_preference_data.py",
    "preprocess": "tools/preprocess_preference_data.py",
    "precompute": "tools/precompute_reference_logprobs.py",
    "train": "pretrain_longpo.py",
    "export": "checkpoint_conversion/mcore_to_hf.py",
    "evaluate": "tools/evaluate.py",
    "decide": "tools/self_evolve.py",
}
PARALLEL = ("precompute", "train")
"""Stages of several processes."""

_LENGTH, _MODEL = "it is the round's seq-length", "generator, start and reference say which model does what"
_FILES = "its files have fixed places in the output folder"
_WHOLE = "a stage makes the whole of its output"
OURS: Mapping[str, Mapping[str, str]] = {
    "generate": {
        **dict.fromkeys(("output", "dataset-prefix", "overwrite"), _FILES),
        **dict.fromkeys(("model", "tokenizer-model"), _MODEL),
        **dict.fromkeys(("shard", "merge", "dry-run"), _WHOLE),
        "input": "it is the round's documents",
        "seq-length": _LENGTH,
    },
    "preprocess": {
        **dict.fromkeys(("input", "output-prefix", "overwrite"), _FILES),
        "tokenizer-model": "it is the model's",
        "seq-length": _LENGTH,
        "split": "train has a split, which needs no second dataset",
        "input-format": "the pairs are those of generate",
    },
    "precompute": {
        **dict.fromkeys(("data-path", "overwrite"), _FILES),
        **dict.fromkeys(("bf16", "reference-rotary-base", "reference-context"), "it is what train says"),
        "reference-checkpoint": _MODEL,
    },
    "train": {
        **dict.fromkeys(("data-path", "save", "load", "metrics-file"), _FILES),
        **dict.fromkeys(("pretrained-checkpoint", "reference-checkpoint"), _MODEL),
        **dict.fromkeys(("dry-run", "num-devices", "device-gib"), "a stage trains"),
        "seq-length": _LENGTH,
        "rotary-base": "it is the round's rotary-base",
    },
    "export": {
        **dict.fromkeys(("load", "save"), _FILES),
        **dict.fromkeys(("merge", "base"), "a run with LoRA is merged"),
        "iteration": "the newest checkpoint is exported",
    },
    "evaluate": {
        **dict.fromkeys(("output", "report-only"), _FILES),
        **dict.fromkeys(("model", "base", "name", "tokenizer-model"), "the base and each round's model are evaluated"),
    },
}
"""Flags that the loop gives, and where their values come from."""


def _group(*names: str) -> set[str]:
    return {flag for name in names for info in group_fields(name) for flag in (info.flag, f"--no-{info.flag[2:]}")}


_SERVING = {"--server", "--concurrency", "--request-timeout", "--max-retries", "--api-key-variable", "--max-batch-tokens"}
_LAUNCHER = {"--standalone", "--nproc-per-node", "--nnodes"}
HOW: Mapping[str, frozenset[str]] = {
    "generate": frozenset({*_SERVING, "--long-server", "--documents-per-group"}),
    "preprocess": frozenset({"--workers"}),
    "precompute": frozenset({*_LAUNCHER, *_group("parallel")}),
    "train": frozenset(
        {
            *_LAUNCHER,
            *_group("parallel", "logging", "evaluation"),
            *("--eval-interval", "--eval-iters", "--save-interval", "--keep-checkpoints"),
            *("--micro-batch-size", "--micro-batch-tokens", "--logit-chunk-size"),
            *("--recompute-granularity", "--recompute-method", "--recompute-num-layers"),
            *("--recompute-attention", "--no-recompute-attention", "--cpu-offloading-num-layers"),
        }
    ),
    "evaluate": frozenset({*_SERVING, "--samples-per-group", "--save-prompts"}),
}
"""Flags that say how the work is done: servers, processes, layout, memory, logs. The result is the same but for rounding."""

FILES: Mapping[str, tuple[str, ...]] = {
    "generate": ("lead-in-file", "template-dir", "question-generator"),
    "preprocess": ("chat-template",),
    "train": ("config",),
    "evaluate": ("haystack", "squad", "hotpotqa", "infinitebench", "short-data", "questions"),
}
"""Flags whose values are files or folders that are read."""


def named_files(kind: str, flags: Flags) -> tuple[Artifact, ...]:
    """What the flags name that is read: PATH, NAME=PATH, or PATH:FUNCTION."""
    found = []
    for flag in FILES.get(kind, ()):
        for value in listed(flags.get(flag)):
            path = value.partition("=")[2] or value if flag == "questions" else value
            found.append(Artifact(Path(path.rpartition(":")[0] if flag == "question-generator" else path)))
    return tuple(found)


def listed(value: str | list[str] | None) -> list[str]:
    """The values of a flag, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else value
