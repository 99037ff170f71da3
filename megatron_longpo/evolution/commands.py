"""The sub-commands of tools/self_evolve.py."""

from __future__ import annotations

import shlex
import sys

from megatron_longpo.evolution.config import Config
from megatron_longpo.evolution.order import absent_inputs
from megatron_longpo.evolution.plan import Plan
from megatron_longpo.evolution.runner import Chain, Stopped, only_run, run_chain
from megatron_longpo.evolution.status import list_states
from megatron_longpo.utils.errors import UserError


def show_plan(config: Config, plan: Plan) -> None:
    """Print every command."""
    for number, stage in enumerate(plan.stages, start=1):
        print(f"[{number}/{len(plan.stages)}] {stage.name}: {stage.title.partition(': ')[2] or stage.title}")
        print(f"$ {shlex.join(stage.command)}\n")
    tell_warnings(plan)
    for name, path in absent_inputs(plan.stages):
        print(f"{name} needs {path}, which is not there yet")


def tell_warnings(plan: Plan) -> None:
    """Print what the commands' parsers warn of."""
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def show_status(config: Config, plan: Plan) -> None:
    """Print a row for each stage."""
    rows = list_states(plan.stages, config.output)
    head = ("stage", "state", "attempts", "seconds", "started (UTC)", "")
    cells = [head, *((row.name, row.state, row.attempts, row.seconds, row.start, row.reason) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head) - 1)]
    for row in cells:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]).rstrip())


def run(config: Config, plan: Plan, only: str | None) -> None:
    """Run what is not done.

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
    with only_run(config.output):
        try:
            run_chain(Chain(stages=plan.stages, folder=config.output), only)
        except Stopped as stage:
            print(f"\nstopped during {stage}, as asked; the same command goes on there")
