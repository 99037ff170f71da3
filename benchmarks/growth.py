"""Our step against itself at half the length: the formula explains the time, and memory is linear."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from benchmarks.contest import Scale, contest_main
from benchmarks.duel import median_of
from benchmarks.flops import our_flops
from benchmarks.jobs import Bench, Job, reuse_freed_memory
from benchmarks.measure import timed
from benchmarks.ours import OurStep
from benchmarks.problem import Problem, make_models
from benchmarks.report import Result
from benchmarks.step import peak_of, problem_of, shape_of
from megatron_longpo.utils.errors import run_command

TIME_TARGET, MEMORY_TARGET = 1.10, 2.05


def times(problems: list[dict[str, Any]], models: str, rounds: int) -> list[list[dict[str, float]]]:
    """Time our step on each problem, in turns: the machine's speed changes within minutes, and quotients of times show it."""
    first, *others = map(Problem.of, problems)
    step = OurStep.of(first, make_models(first.model, Path(models))[1])
    steps = [step, *map(step.on, others)]
    samples: list[list[dict[str, float]]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, found in zip(steps, samples, strict=True):
            found.append(timed(step)[1])
    return samples


def cpu_seconds(bench: Bench, scale: Scale) -> dict[int, float]:
    """Measure the CPU time of our step at every length."""
    problems = [dataclasses.asdict(problem_of(scale, prompt)) for prompt in scale.growth]
    job = Job(
        name=f"growth-{'-'.join(map(str, scale.growth))}", function="benchmarks.growth:times",
        arguments={"problems": problems, "models": str(bench.models), "rounds": scale.growth_runs},
        threads=scale.threads, environment=reuse_freed_memory(),
    )  # fmt: skip
    found = bench.run(job)[0]
    return {prompt: median_of(samples, "cpu") for prompt, samples in zip(scale.growth, found, strict=True)}


def _time_row(shape: str, measured: float, predicted: float) -> Result:
    quotient = measured / predicted
    return Result(
        contest="growth", against="FLOPs by formula", shape=shape, quantity="growth of CPU time", unit="x", ours=measured,
        other=predicted, ratio=max(quotient, 1 / quotient), target=TIME_TARGET,
    )  # fmt: skip


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """Every doubling, and the whole range."""
    seconds = cpu_seconds(bench, scale)
    flops = {prompt: our_flops(problem_of(scale, prompt)) for prompt in scale.growth}
    peaks = {prompt: peak_of(bench, scale, "ours", prompt)["peak"] for prompt in scale.growth}
    steps = list(itertools.pairwise(scale.growth))
    whole = [(scale.growth[0], scale.growth[-1])] if len(steps) > 1 else []
    results = [
        _time_row(f"{shape_of(short)} to {shape_of(long)}", seconds[long] / seconds[short], flops[long] / flops[short])
        for short, long in steps + whole
    ]
    for short, long in steps:
        ratio = peaks[long] / peaks[short]
        results.append(
            Result(
                contest="growth", against="half the length", shape=f"{shape_of(short)} to {shape_of(long)}",
                quantity="peak memory", unit="MB", ours=peaks[long] / 1e6, other=peaks[short] / 1e6, ratio=ratio,
                target=MEMORY_TARGET * long / (2 * short),
            )
        )  # fmt: skip
    return results


if __name__ == "__main__":
    run_command(lambda: contest_main("growth", contest, __doc__))
