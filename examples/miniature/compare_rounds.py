"""Two rounds against one at the longer length with as many tokens, for several seeds, by tools/self_evolve.py.

  python examples/miniature/compare_rounds.py --lr 1e-3

The bases are those of study.py. A second run goes on where the first one stopped; report.py puts the results on the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import arms
import yaml
from study import BUILD, HERE, REPOSITORY, python
from tasks import Pool

from megatron_longpo.utils.errors import run_command


def folder_of(seed: int) -> Path:
    """Return where the rounds of a seed lie."""
    return BUILD / "rounds" / f"seed{seed}"


def write_plan(seed: int, lr: float) -> Path:
    """Write the file of a seed's rounds."""
    path = folder_of(seed).with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    template = Path(HERE, "compare_rounds.yaml.in").read_text(encoding="utf-8")
    path.write_text(template.replace("SEED", str(seed)).replace("RATE", f"{lr:g}"), encoding="utf-8")
    return path


def learning_rate(seed: int) -> float:
    """Read the learning rate of a seed's rounds from its file."""
    plan = yaml.safe_load(folder_of(seed).with_suffix(".yaml").read_text(encoding="utf-8"))
    return float(plan["defaults"]["train"]["lr"])


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
