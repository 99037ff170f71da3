"""Several ways to take the same step, timed in turns in one process; and the memory that one of them needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import matmul_rate, memory_of, timed
from benchmarks.problem import Problem, make_models
from megatron_longpo.utils.errors import UserError

Step = Callable[[], dict[str, float]]
TOLERANCE = 1e-4  # of loss and gradient norm, fp32, relative


def contestants(names: list[str], problem: Problem, models: Path) -> dict[str, Step]:
    """Steps on a problem, by name, each with gradients and optimizer state standing."""
    hf, native = make_models(problem.model, models)
    built: dict[str, Step] = {}
    for name in names:
        if name == "ours":
            from benchmarks.ours import OurStep

            built[name] = OurStep.of(problem, native)
        elif name == "ours-dpo":
            from benchmarks.ours import DPO, OurStep

            built[name] = OurStep.of(problem, native, objective=DPO)
        elif name == "two-pass":
            from benchmarks.two_pass import TwoPassStep

            built[name] = TwoPassStep(problem, hf)
        elif name == "trl":
            from benchmarks.trl_dpo import TrlStep

            built[name] = TrlStep(problem, hf)
        else:
            raise UserError(f"no contestant is called {name!r}")
    return built


def duel(names: list[str], problem: dict[str, Any], models: str, rounds: int) -> dict[str, Any]:
    """Time steps in turns.

    Returns:
        For each name its ``samples`` (seconds of CPU and wall time, and the matrix-multiply rate just before), and the ``loss``
        and ``grad_norm`` of its step.

    Raises:
        UserError: if the contestants do not compute the same loss and gradient norm.
    """
    steps = contestants(names, Problem.of(problem), Path(models))
    outcome: dict[str, Any] = {name: {"samples": []} for name in names}
    for _ in range(rounds):
        for name, step in steps.items():
            rate = matmul_rate()
            answer, spent = timed(step)
            outcome[name]["samples"].append({**spent, "matmul": rate})
            outcome[name] |= answer
    check_same(outcome)
    return outcome


def check_same(outcome: dict[str, Any]) -> None:
    """Raise `UserError` unless all have the same loss and gradient norm."""
    (first, reference), *others = outcome.items()
    for name, found in others:
        for quantity in ("loss", "grad_norm"):
            if not math.isclose(found[quantity], reference[quantity], rel_tol=TOLERANCE):
                raise UserError(
                    f"{name} and {first} do not compute the same step: {quantity} {found[quantity]} and {reference[quantity]}"
                )


def peak(name: str, problem: dict[str, Any], models: str) -> dict[str, int]:
    """Peak memory of one step above what stands before it: imports, weights, gradients, optimizer state."""
    (step,) = contestants([name], Problem.of(problem), Path(models)).values()
    _, memory = memory_of(step)
    return memory


def median_of(samples: list[dict[str, float]], quantity: str) -> float:
    """Median over samples."""
    return statistics.median(sample[quantity] for sample in samples)


def efficiency(samples: list[dict[str, float]], flops: float) -> float:
    """Useful operations a CPU-second as a share of the matrix-multiply rate, median over samples."""
    return statistics.median(flops / sample["cpu"] / sample["matmul"] for sample in samples)
