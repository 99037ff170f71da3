"""The sub-commands of tools/self_evolve.py."""

from __future__ import annotations

import shlex
import signal
import sys

from megatron_longpo.evolution import slurm
from megatron_longpo.evolution.config import Config
from megatron_longpo.evolution.manifest import Manifest
from megatron_longpo.evolution.order import absent_inputs
from megatron_longpo.evolution.plan import Plan
from megatron_longpo.evolution.report import write_report
from megatron_longpo.evolution.runner import WAIT, Chain, Stopped, launch_here, only_run, run_chain
from megatron_longpo.evolution.states import DONE
from megatron_longpo.evolution.status import SKIPPED, list_states
from megatron_longpo.utils.errors import UserError

WAIT_IN_JOB = 600.0
"""Seconds in which the submitting command, or the job before, lets go of the output folder."""


def show_plan(config: Config, plan: Plan) -> None:
    """Print every command."""
    for number, stage in enumerate(plan.stages, start=1):
        print(f"[{number}/{len(plan.stages)}] {stage.name}: {stage.title.partition(': ')[2] or stage.title}")
        print(f"$ {shlex.join(stage.command)}\n")
    tell_warnings(plan)
    absent: dict[str, str] = {}
    for name, path in absent_inputs(plan.stages):
        absent.setdefault(path, name)
    for path, name in absent.items():
        print(f"{path} is not there yet; {name} needs it")


def tell_warnings(plan: Plan) -> None:
    """Print what the commands' parsers warn of."""
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def show_status(config: Config, plan: Plan) -> None:
    """Print a row for each stage."""
    jobs = slurm.jobs_under_way(Manifest(config.output).jobs) if config.launch.launcher == "slurm" else {}
    head = ("stage", "state", "attempts", "seconds", "started (UTC)", "")
    cells = [head]
    for row in list_states(plan.stages, config.output):
        job = f"job {' '.join(jobs[row.name])}" if row.name in jobs else ""
        cells.append((row.name, row.state, row.attempts, row.seconds, row.start, "; ".join(filter(None, (row.reason, job)))))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head) - 1)]
    for row_cells in cells:
        print("  ".join([*(text.ljust(width) for text, width in zip(row_cells, widths, strict=False)), row_cells[-1]]).rstrip())


def run(config: Config, plan: Plan, only: str | None) -> None:
    """Run what is not done, here or, where the file says so, in Slurm jobs.

    Raises:
        UserError: something is missing, a stage failed, or another run is at work.
    """
    names = [stage.name for stage in plan.stages]
    if only is not None and only not in names:
        raise UserError(f"{config.path}: there is no stage {only}; there are {', '.join(names)}")
    absent = absent_inputs(plan.stages)
    if absent:
        raise UserError(f"{config.path}: {absent[0][0]} needs {absent[0][1]}, which is not there")
    tell_warnings(plan)
    if config.launch.launcher == "slurm" and only is None:
        _submit(config, plan)
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a warning before or after the stages asks for nothing
    in_job = config.launch.launcher == "slurm" and slurm.is_in_job()
    chain = Chain(stages=plan.stages, folder=config.output, launch=slurm.launch_in_job if in_job else launch_here)
    with only_run(config.output, seconds=WAIT_IN_JOB if in_job else WAIT):
        try:
            run_chain(chain, only)
        except Stopped as stopped:  # no failure: Slurm's script puts a job that ends well back into the queue
            print(f"\n{stopped}")
        finally:
            print(f"\nreport: {write_report(config, plan.stages, at_work=False)}", flush=True)


def make_report(config: Config, plan: Plan) -> None:
    """Write the report."""
    print(f"report: {write_report(config, plan.stages)}")


def _submit(config: Config, plan: Plan) -> None:
    """Hand every stage that is not done to Slurm, unless that has been done."""
    under_way = slurm.jobs_under_way(Manifest(config.output).jobs)
    if under_way:
        for name, (job, state) in under_way.items():
            print(f"{name}: job {job}, {state}")
        print(f"{len(under_way)} jobs are under way; nothing was submitted")
        return
    with only_run(config.output):
        rows = list_states(plan.stages, config.output, at_work=False)
        left = [stage for stage, row in zip(plan.stages, rows, strict=True) if row.state not in (DONE, SKIPPED)]
        jobs = slurm.submit(config, left, Manifest(config.output))
    for name, job in jobs.items():
        print(f"{name}: job {job}, log {slurm.log_of(config, name, job)}")
    print(f"{len(jobs)} jobs submitted, each after the one before it" if jobs else "every stage is done")
