"""The flags of tools/evaluate.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.infinitebench import BOOK_TASKS, load_books
from megatron_longpo.evaluation.naming import name_paths
from megatron_longpo.evaluation.plan import SHORT_NAMES, SUITES, TASK_NAMES, Plan, select_tasks
from megatron_longpo.evaluation.questions import METRICS, QuestionTask, load_questions
from megatron_longpo.evaluation.reading import load_hotpotqa, load_squad
from megatron_longpo.evaluation.ruler import NAMES, QA_TASKS, make_tasks
from megatron_longpo.evaluation.scoring import load_rouge, rouge_lsum
from megatron_longpo.evaluation.short import check_harness
from megatron_longpo.evaluation.text import load_haystack
from megatron_longpo.utils.errors import UserError

DEFAULT_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""The paper's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags, in groups."""
    _add_model(parser.add_argument_group("model"))
    _add_server(parser.add_argument_group("server"))
    _add_tasks(parser.add_argument_group("tasks"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="results, a folder for each model, and the report"
    )
    output.add_argument("--save-prompts", action="store_true", help="also write every prompt whole, to MODEL/prompts.jsonl")
    output.add_argument(
        "--report-only", action="store_true", help="ask nothing: make the report again from the results that are there"
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]FOLDER",
        help="Hugging Face folders, or native checkpoints (exported first); run in this process, one after the other",
    )
    group.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="where the base of a native checkpoint with LoRA lies (default: where training had it)",
    )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    group.add_argument("--dtype", choices=dtypes, default="auto", help="precision of the weights (default: the checkpoint's)")
    group.add_argument("--rotary-base", type=float, metavar="X", help="RoPE base in place of the models' own")
    group.add_argument(
        "--max-batch-tokens", type=int, default=16384, metavar="N",
        help="positions that are decoded together; lower it if memory runs out (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--samples-per-group", type=int, default=8, metavar="N", help="samples that share batches (default: %(default)s)"
    )


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--server", nargs="+", metavar="URL", help="OpenAI-compatible servers (http://host:port/v1), replicas of one model"
    )
    group.add_argument(
        "--tokenizer-model", type=Path, metavar="FOLDER", help="its tokenizer's Hugging Face folder; needed with --server"
    )
    group.add_argument("--served-model", metavar="NAME", help="the model's name there (default: the only one that they serve)")
    group.add_argument("--name", help="its name in the results (default: the served model's)")
    group.add_argument(
        "--concurrency", type=int, default=16, metavar="N", help="requests under way at one server (default: %(default)s)"
    )
    group.add_argument(
        "--request-timeout", type=float, default=600.0, metavar="X", help="seconds that a request may take (default: %(default)s)"
    )
    group.add_argument(
        "--max-retries", type=int, default=8, metavar="N", help="tries of a request after the first (default: %(default)s)"
    )
    group.add_argument("--request-extra", default="{}", metavar="JSON", help="further fields of every request")
    group.add_argument(
        "--api-key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable of the key (default: %(default)s)",
    )


def _add_tasks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help=f"suites ({', '.join(SUITES)}) or single tasks ({', '.join(TASK_NAMES)}); default: ruler, or none with --questions",
    )
    group.add_argument(
        "--lengths", nargs="+", type=int, default=list(DEFAULT_LENGTHS), metavar="N",
        help="lengths of RULER's tasks, in tokens of prompt and answer together (default: 4096 to 131072, the paper's)",
    )  # fmt: skip
    group.add_argument(
        "--samples",
        type=int,
        default=20,
        metavar="N",
        help="samples of each of RULER's tasks at each length (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=42, metavar="N", help="seed of RULER's tasks (default: %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="of the answers; 0 is greedy (default)")
    group.add_argument(
        "--haystack", type=Path, metavar="PATH",
        help="text to hide needles in: a file, or a folder of .txt and .md (default: Python's language reference)",
    )  # fmt: skip
    group.add_argument("--squad", type=Path, metavar="FILE", help="SQuAD's JSON, for RULER's qa_1; without it that is left out")
    group.add_argument(
        "--hotpotqa", type=Path, metavar="FILE", help="HotpotQA's JSON, for RULER's qa_2; without it that is left out"
    )
    group.add_argument("--infinitebench", type=Path, metavar="DIR", help="folder of InfiniteBench's JSONL files")
    group.add_argument(
        "--infinitebench-length", type=int, default=131072, metavar="N",
        help="most tokens of its prompts and answers; longer books lose their middle (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--short-data",
        type=Path,
        metavar="DIR",
        help="folder with mmlu, arc_challenge, hellaswag, winogrande: Parquet or JSON Lines",
    )
    group.add_argument(
        "--questions",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]FILE",
        help="your own questions: JSON Lines of question, answers, and optional context, group, id; "
        "without --tasks nothing else is asked",
    )
    group.add_argument(
        "--questions-metric",
        choices=METRICS,
        default="contains",
        help="; ".join(f"{name}: {metric.title}" for name, metric in METRICS.items()) + " (default: %(default)s)",
    )
    group.add_argument(
        "--questions-max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="most tokens of their answers (default: %(default)s)",
    )
    group.add_argument("--allow-hub", action="store_true", help="get the short tasks' data from the Hugging Face hub")
    group.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="first N samples of each InfiniteBench and short task, and of each file of --questions (default: all)",
    )


def read_plan(arguments: argparse.Namespace) -> Plan:
    """Read the texts and data that the tasks are made of.

    Raises:
        UserError: a value is out of range, or something that a task needs is missing or unreadable.
    """
    bounded = ("samples", "infinitebench_length", "limit", "max_batch_tokens", "samples_per_group", "questions_max_new_tokens")
    for name in bounded:
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if min(arguments.lengths) < 1 or arguments.temperature < 0:
        raise UserError("--lengths must be at least 1, and --temperature at least 0")
    names = select_tasks(_asked(arguments))
    books = [task for task in BOOK_TASKS if task.name in names]
    if books and arguments.infinitebench is None:
        raise UserError("--tasks infinitebench: give --infinitebench DIR, the folder of its JSONL files")
    short = [name for name in SHORT_NAMES if name in names]
    if short and arguments.short_data is None and not arguments.allow_hub:
        raise UserError("--tasks short: give --short-data DIR, or --allow-hub to get the data from the hub")
    if short:
        check_harness()
    if any(task.score is rouge_lsum for task in books):
        load_rouge()
    return Plan(
        seed=arguments.seed,
        lengths=sorted(set(arguments.lengths)),
        samples=arguments.samples,
        temperature=arguments.temperature,
        haystack=load_haystack(arguments.haystack),
        generated=_generated(arguments, names),
        books=[load_books(arguments.infinitebench, task, arguments.limit) for task in books],
        book_length=arguments.infinitebench_length,
        short=short,
        short_data=arguments.short_data,
        limit=arguments.limit,
        save_prompts=arguments.save_prompts,
        questions=_questions(arguments),
    )


def _asked(arguments: argparse.Namespace) -> list[str]:
    """Names of tasks as they were given, or those that are asked if none was."""
    given: list[str] | None = arguments.tasks
    return given if given is not None else [] if arguments.questions else ["ruler"]


def _questions(arguments: argparse.Namespace) -> list[QuestionTask]:
    tasks = []
    reserved = (*SUITES, *TASK_NAMES)
    for name, path in name_paths("--questions ", arguments.questions, lambda path: path.stem, "mine", reserved):
        file = load_questions(name, path, arguments.limit)
        tasks.append(QuestionTask(file=file, metric=arguments.questions_metric, answer_tokens=arguments.questions_max_new_tokens))
    return tasks


def _generated(arguments: argparse.Namespace, names: tuple[str, ...]) -> list[Any]:
    """Make RULER's tasks. Those of reading are left out, with a word, unless they were asked for by name."""
    files = dict(zip(QA_TASKS, ("squad", "hotpotqa"), strict=True))
    for name, flag in files.items():
        if name in names and getattr(arguments, flag) is None:
            if {name, "qa"} & set(_asked(arguments)):
                raise UserError(f"--tasks {name}: give --{flag} FILE, which it is made of")
            print(f"{name} is left out: it is made of --{flag} FILE")
    squad = load_squad(arguments.squad) if arguments.squad and "qa_1" in names else None
    hotpotqa = load_hotpotqa(arguments.hotpotqa) if arguments.hotpotqa and "qa_2" in names else None
    return [task for task in make_tasks(squad, hotpotqa) if task.name in names and task.name in NAMES]
