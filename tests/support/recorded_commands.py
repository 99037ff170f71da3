"""Run a shell script with stand-ins for the programs that it starts, and see with which arguments it starts them."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

STAND_IN = """\
#!{python}
# torchrun and python only leave a record, make does nothing, srun and sbatch run what they are given, scontrol knows one address.
import json, os, subprocess, sys
program, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if program == "scontrol":
    print("n1" if arguments[:2] == ["show", "hostnames"] else "NodeName=n1 NodeAddr=127.0.0.1 Port=6818")
elif program == "srun":
    while arguments[0].startswith("-"):
        arguments.pop(0)
    sys.exit(subprocess.run(arguments).returncode)
elif program == "sbatch":
    script = next(place for place, word in enumerate(arguments) if word.endswith(".sbatch"))
    nodes = arguments[arguments.index("--nodes") + 1] if "--nodes" in arguments[:script] else "1"
    slurm = dict(SLURM_SUBMIT_DIR=os.getcwd(), SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_NUM_NODES=nodes)
    sys.exit(subprocess.run(["bash", *arguments[script:]], env=os.environ | slurm).returncode)
elif program != "make":
    with open(os.environ["RECORD"], "a") as record:
        print(json.dumps([program, *arguments]), file=record)
"""


@dataclass(frozen=True)
class Command:
    """One command of the project as a script starts it.

    Attributes:
        script: path of the Python file in the repository.
        flags: its arguments.
        world_size: number of processes that run it, over all nodes.
    """

    script: str
    flags: list[str]
    world_size: int


def recorded_commands(shell: str, folder: Path) -> list[Command]:
    """Run shell text from the repository's root; list the commands that it starts through python, torchrun, srun and sbatch.

    Args:
        shell: the text, as after ``bash -c``.
        folder: an empty folder for the stand-ins and their record.

    Raises:
        AssertionError: the text fails.
    """
    for program in ("python", "torchrun", "srun", "sbatch", "scontrol", "make"):
        stand_in = folder / program
        stand_in.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
        stand_in.chmod(0o755)
    record = folder / "record.jsonl"
    record.touch()
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(record)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [read_command(json.loads(line)) for line in record.read_text(encoding="utf-8").splitlines()]


def read_command(words: list[str]) -> Command:
    """Split a recorded command line at the Python file; torchrun's own options give the number of processes."""
    place = next(place for place, word in enumerate(words) if word.endswith(".py"))
    launcher = dict(itertools.pairwise(words[1:place]))
    processes = int(launcher.get("--nnodes", 1)) * int(launcher.get("--nproc-per-node", 1))
    return Command(words[place], words[place + 1 :], processes)
