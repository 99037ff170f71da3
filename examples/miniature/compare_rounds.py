"""Two rounds against one at the longer length with as many tokens, for several seeds, by tools/self_evolve.py.

  python examples/miniature/compare_rounds.py --lr 3e-4

The two rounds are those of rounds.yaml; the bases are those of study.py. A second run goes on where the first one stopped;
report.py puts the results on the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import arms
import yaml
from study import BUILD, HERE, REPOSITORY, python
from tasks import Pool

from megatron_longpo.evolution.yaml_file import read_yaml
from megatron_longpo.utils.errors import run_command

ROUNDS = Path(HERE, "rounds.yaml")
PAIRS_AT_ONCE = 480
"""Pairs of the one round's training: at 8 chunks each they have the tokens of 320 pairs of 4 chunks and 320 of 8."""
DOCUMENTS = {"4x": (4, 960), "8x": (8, 640), "at-once": (8, 480)}
"""Chunks and number. A document gives no pair if its two answers are the same everywhere: often in the first round, hardly ever
in the one at once. With these a training reads hardly a pair twice."""


def folder_of(seed: int) -> Path:
    """Return where the rounds of a seed lie."""
    return BUILD / "rounds" / f"seed{seed}"


def make_plan(seed: int, lr: float) -> dict[str, Any]:
    """Make a seed's plan: the rounds of rounds.yaml without their rule to stop, and the one at once."""
    plan = read_yaml(ROUNDS)
    plan["model"]["command"] = plan["model"]["command"].replace("--seed 0", f"--seed {seed}")
    plan["defaults"]["train"] |= {"lr": f"{lr:g}", "seed": str(seed)}
    del plan["stop"]
    first, second = plan["rounds"]
    at_once = {
        **second,
        "name": "at-once",
        **dict.fromkeys(("generator", "start", "reference"), "base"),
        "generate": first["generate"],
        "train": {"train-iters": str(PAIRS_AT_ONCE // arms.GLOBAL_BATCH_SIZE)},
    }
    plan["rounds"].append(at_once)
    for place, round_ in enumerate(plan["rounds"]):
        chunks, number = DOCUMENTS[round_["name"]]
        output = f"{plan['output']}/documents-{round_['name']}.jsonl"
        drawn = 10_000 * (place + 1) + seed
        command = f"python {HERE}/make_data.py documents --seed {drawn} --number {number} --chunks {chunks} --output {output}"
        round_["documents"] = {**round_["documents"], "output": output, "command": command}
    return plan


def write_plan(seed: int, lr: float) -> Path:
    """Write the file of a seed's rounds."""
    path = folder_of(seed).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = make_plan(seed, lr)
    text = yaml.safe_dump(plan, sort_keys=False)
    path.write_text(text.replace(plan["output"], str(folder_of(seed))), encoding="utf-8")
    return path


def learning_rate(seed: int) -> float:
    """Read the learning rate of a seed's rounds from its file."""
    return float(read_yaml(folder_of(seed).with_suffix(".yaml"))["defaults"]["train"]["lr"])


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(arms.SEEDS))
    parser.add_argument("--lr", type=float, required=True, help="of every round: what study.py chose for longpo")
    parser.add_argument("--workers", type=int, default=2, help="seeds at a time, a thread each (default: 2)")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    plans = {seed: write_plan(seed, arguments.lr) for seed in arguments.seeds}
    tasks = [python(f"rounds-{seed}", "tools/self_evolve.py", "run", plan) for seed, plan in plans.items()]
    Pool(BUILD, arguments.workers).run("rounds", [[dataclasses.replace(task, always=True)] for task in tasks])


if __name__ == "__main__":
    run_command(main)
