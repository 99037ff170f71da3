"""Two rounds with a tiny model on tiny documents, for tools/self_evolve.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.chain_model import write_chain_model
from tests.support.recorded_commands import ROOT
from tests.support.scripted_generation import make_document

TEXT = """\
output: {folder}/out
model: {model}
launch: {launch}
defaults:
  # The model's answers are four words of its chain; with a temperature the two sides differ.
  generate:
    num-turns: 2
    temperature: 1
    min-document-tokens: 1
    min-chunk-tokens: 80
    max-chunk-tokens: 200
    max-new-tokens: 40
    question-max-new-tokens: 80
    skip-filter: [refusal, repetition, too_short, no_answer, identical]
  preprocess: {{workers: 1}}
  train: {{train-iters: {iterations}, global-batch-size: 2, save-interval: 1, lr: 1e-3, tensorboard-dir: {folder}/tensorboard}}
  evaluate: {{tasks: [vt, niah_single_1], samples: 1}}
stop: {{short: [vt@700], max-short-loss: 100, long: [niah], min-long-gain: {gain}}}
rounds:
  - {{name: 1k, seq-length: 1000, rotary-base: 2e4, documents: {folder}/documents.jsonl}}
"""
SECOND = "  - {{name: 2k, seq-length: 1500, rotary-base: 4e4, documents: {folder}/documents.jsonl, generator: base}}\n"
STAGES_OF_A_ROUND = ("generate", "preprocess", "precompute", "train", "export", "evaluate", "decide")


def write_rounds(
    folder: Path, model: Path, *, launch: str = "{launcher: local}", gain: float = -100.0, rounds: int = 2, iterations: int = 3
) -> Path:
    """Write documents and the file of one or two rounds to a folder; return the file.

    Args:
        folder: the output goes to ``out`` in it.
        model: what `write_model` has written.
        launch: the file's ``launch``.
        gain: the least gain of the long score, which is 0 for this model whatever it learns.
        rounds: one, or two.
        iterations: of each training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(3):
            row = {"document_id": f"d{number}", "text": make_document(f"book{number}").text}
            lines.write(json.dumps(row) + "\n")
    path = folder / "rounds.yaml"
    text = TEXT + (SECOND if rounds == 2 else "")
    path.write_text(text.format(folder=folder, model=model, launch=launch, gain=gain, iterations=iterations), encoding="utf-8")
    return path


def write_model(folder: Path) -> Path:
    """Save the model that the rounds start from."""
    return write_chain_model(folder)


def self_evolve(
    *words: str | Path, environment: dict[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    command: Sequence[str] = [sys.executable, "tools/self_evolve.py", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=timeout)
