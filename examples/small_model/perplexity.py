"""Measure the perplexity of models on texts, each read as a whole, by lm-eval's rolling log-likelihood.

  python examples/small_model/perplexity.py --model before=MODEL --texts 1024.jsonl --max-length 1024 --output perplexity.json

A model that the output already has is not asked again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from megatron_longpo.evaluation.harness import harness_model
from megatron_longpo.evaluation.models import Model, name_places, open_folder
from megatron_longpo.utils.errors import UserError, run_command
from megatron_longpo.utils.files import write_json

METRICS = ("bits_per_byte", "word_perplexity")


def task_of(path: Path) -> dict[str, Any]:
    """Describe a file of JSON Lines with a field ``text`` as a task of lm-eval's."""
    return {
        "task": f"perplexity_{path.stem}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in METRICS],
    }


def measure(model: Model, texts: Sequence[Path], max_length: int) -> dict[str, dict[str, float]]:
    """Return a model's figures for each file, over all of its texts together.

    Args:
        model: in this process.
        texts: files.
        max_length: tokens that the model reads at once; a longer text is cut into pieces that know nothing of each other.
    """
    harness = harness_model(model, batch_size=1, max_length=max_length)
    manager = TaskManager(include_defaults=False)
    tasks = [task_of(path) for path in texts]
    found = lm_eval.simple_evaluate(harness, tasks=tasks, bootstrap_iters=0, task_manager=manager)
    assert found is not None
    results = found["results"]
    return {path.stem: {name: results[f"perplexity_{path.stem}"][f"{name},none"] for name in METRICS} for path in texts}


def main() -> None:
    """Measure every model that the output does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME=FOLDER", help="Hugging Face folders")
    parser.add_argument("--rotary-base", type=float, help="RoPE base in place of the models' own")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="JSON Lines with a field `text`")
    parser.add_argument("--max-length", type=int, required=True, help="tokens that are read at once")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    for path in arguments.texts:
        if not path.is_file():
            raise UserError(f"{path}: no such file; examples/small_model/held_out.py writes it")
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for place in name_places(arguments.model):
        if place.name not in results:
            model = open_folder(
                place, dtype="float32", rotary_base=arguments.rotary_base, batch_tokens=arguments.max_length, group_size=1
            )
            results[place.name] = measure(model, arguments.texts, arguments.max_length)
            write_json(arguments.output, results)
        for name, figures in results[place.name].items():
            print(f"{place.name}, {name}: {', '.join(f'{metric} {value:.3f}' for metric, value in figures.items())}")


if __name__ == "__main__":
    run_command(main)
