"""Teach the base model of a seed and write it as a Hugging Face folder, with questions for its evaluation beside it."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import arms
from study import BUILD, HERE, REPOSITORY, Seed, python
from tasks import Pool

from megatron_longpo.utils.errors import run_command


def main() -> None:
    """Run the school of the study, which goes on where it stopped, and export what it ends with."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    seed, folder = Seed(arguments.seed), arguments.output
    last = arms.SCHOOL[-1].iterations
    sizes = ("--number", arms.QUESTIONS, "--chunks", *arms.EVALUATED_CHUNKS)
    questions = BUILD / f"rounds-questions{arguments.seed}.jsonl"
    chain = [
        *seed.school(),
        seed.export(last),
        python(
            seed.name("rounds-questions"), f"{HERE}/make_data.py", "questions",
            *("--output", questions, "--seed", 2000 + arguments.seed, *sizes),
        ),
    ]  # fmt: skip
    Pool(BUILD, 1).run("base model", [chain])
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(seed.stop(last), partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    shutil.copyfile(questions, arguments.questions)


if __name__ == "__main__":
    run_command(main)
