r"""Measure how good models are at long context, and whether their short-context skill is intact.

Long context: RULER's 13 tasks, made here at any length for any tokenizer, and InfiniteBench's English books from a local path.
Short context: MMLU, ARC-C, HellaSwag and Winogrande by lm-eval. And questions of your own, in JSON Lines. The report compares all
models of an output folder, beside the paper's published rows; docs/evaluation.md tells what is asked and how it is scored.

  python tools/evaluate.py --model before=models/Qwen2.5-7B-Instruct after=runs/longpo --tasks ruler --lengths 4096 32768 \\
      --haystack books --squad dev-v2.0.json --hotpotqa hotpot_dev_distractor_v1.json --output build/eval
  python tools/evaluate.py --server http://node1:8000/v1 --tokenizer-model models/Qwen2.5-7B-Instruct --tasks infinitebench \\
      --infinitebench data/InfiniteBench --output build/eval
  python tools/evaluate.py --model exported/longpo --tasks short --short-data data/short --output build/eval
  python tools/evaluate.py --model exported/longpo --questions contracts=data/contracts.jsonl --output build/eval
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.options import add_arguments, read_plan
from megatron_longpo.utils.errors import UserError, run_command
from megatron_longpo.utils.json_flags import parse_json_object

TRACKER = "latest_checkpointed_iteration.txt"


def export_native(folder: Path, target: Path, base: Path | None) -> Path:
    """Return a Hugging Face folder of a model: itself, or what a native checkpoint is exported to."""
    if not (folder / TRACKER).exists():
        return folder
    from megatron_longpo.conversion.export_hf import mcore_to_hf
    from megatron_longpo.conversion.record import ModelRecord, find_iteration

    merge = ModelRecord.read(find_iteration(folder)).adapters is not None
    print(f"{folder}: exporting to {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    mcore_to_hf(folder, target, merge=merge, base=base if merge else None)
    return target


def open_models(arguments: argparse.Namespace) -> Iterator[Any]:
    """Load or reach the models, one after the other."""
    from megatron_longpo.evaluation.models import Place, name_places, open_folder, open_server

    for place in name_places(arguments.model):
        folder = export_native(place.folder, arguments.output / place.name / "exported", arguments.base)
        yield open_folder(
            Place(name=place.name, folder=folder),
            dtype=arguments.dtype,
            rotary_base=arguments.rotary_base,
            batch_tokens=arguments.max_batch_tokens,
            group_size=arguments.samples_per_group,
        )
    if arguments.server:
        yield open_server(
            arguments.name,
            arguments.server,
            arguments.tokenizer_model,
            {
                "concurrency": arguments.concurrency,
                "timeout": arguments.request_timeout,
                "max_retries": arguments.max_retries,
            },
            api_key=os.environ.get(arguments.api_key_variable),
            model=arguments.served_model,
            extra=parse_json_object("--request-extra", arguments.request_extra, '{"cache_prompt": false}'),
        )


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    if arguments.report_only:
        return
    if bool(arguments.model) == bool(arguments.server):
        raise UserError("give one of --model (in this process) and --server (elsewhere)")
    if arguments.server and arguments.tokenizer_model is None:
        raise UserError("--server needs --tokenizer-model FOLDER, the tokenizer of the served model")
    if arguments.server and arguments.rotary_base is not None:
        raise UserError("--rotary-base goes with --model; a server is started with its own")
    if arguments.concurrency < 1 or arguments.request_timeout <= 0 or arguments.max_retries < 0:
        raise UserError("--concurrency must be at least 1, --request-timeout above 0, --max-retries at least 0")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="An interrupted run goes on where it stopped when the same command is given again.",
    )
    add_arguments(parser)
    return parser


def main() -> None:
    """Parse, evaluate each model, report."""
    arguments = build_parser().parse_args()
    check(arguments)
    if not arguments.allow_hub:  # before the libraries that read it are imported
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

    from megatron_longpo.evaluation.report import write_reports
    from megatron_longpo.evaluation.run import evaluate

    if not arguments.report_only:
        plan = read_plan(arguments)
        for model in open_models(arguments):
            evaluate(plan, model, arguments.output / model.name)
            del model  # before the next one is loaded
    for line in write_reports(arguments.output):
        print(line)


if __name__ == "__main__":
    run_command(main)
