"""Stages as Slurm jobs: each after the one before it, each running its stage by this same command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_longpo.evolution.config import Config, Flags
from megatron_longpo.evolution.manifest import Manifest
from megatron_longpo.evolution.runner import Launch, launch_here
from megatron_longpo.evolution.stages import Stage
from megatron_longpo.utils.errors import UserError

BATCH = "examples/slurm/stage.sbatch"
ON_NODES = "examples/slurm/torchrun_on_nodes.sh"


def is_in_job() -> bool:
    """Whether this process is part of a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def launch_in_job(stage: Stage) -> Launch:
    """Start a command inside a job: what works in parallel runs on all its nodes."""
    if stage.command[0] != "torchrun":
        return launch_here(stage)
    kept = [word for word in stage.command[1:] if not word.startswith(("--standalone", "--nnodes="))]
    return Launch(["bash", ON_NODES, sys.executable, *kept], takes_warning=stage.saves)


def submit(config: Config, stages: Sequence[Stage], manifest: Manifest) -> dict[str, str]:
    """Hand stages to Slurm, in order.

    Returns:
        The job of each stage. The manifest keeps them, also of a submission that failed half-way.

    Raises:
        UserError: sbatch refuses one.
    """
    logs = config.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, str] = {}
    for stage in stages:
        before = list(jobs.values())[-1:]
        words = [
            *("sbatch", "--parsable", f"--job-name=longpo-{stage.name}"),
            f"--output={logs / stage.name.replace('/', '-')}-%j.log",
            *(f"--dependency=afterok:{job}" for job in before),
            "--kill-on-invalid-dep=yes",
            *_options(config.launch.options(stage.kind)),
            *(BATCH, sys.executable, str(config.path), stage.name),
        ]
        jobs[stage.name] = _run(words).strip().partition(";")[0]
        manifest.submit(jobs)
    return jobs


def _options(options: Flags) -> list[str]:
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            words += [f"--{name}"] if one == "true" else [] if one == "false" else [f"--{name}={one}"]
    return words


def jobs_under_way(jobs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The jobs that wait or run: stage -> job and its state.

    Raises:
        UserError: Slurm does not answer.
    """
    if not jobs:
        return {}
    lines = _run(["squeue", "--noheader", "--me", "--format=%i %T"]).splitlines()
    states = dict(line.split()[:2] for line in lines if line.strip())
    return {stage: (job, states[job]) for stage, job in jobs.items() if job in states}


def _run(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        raise UserError(f"{words[0]}: not found; launch.launcher is slurm, so run this where jobs are submitted") from None
    if done.returncode:
        raise UserError(f"{words[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def log_of(config: Config, stage: str, job: str) -> Path:
    """Where a job writes."""
    return config.output / "logs" / f"{stage.replace('/', '-')}-{job}.log"
