"""Our step against itself at half the length: the formula explains the time, and memory is linear."""

from __future__ import annotations

import itertools

from benchmarks.contest import Scale, contest_main
from benchmarks.duel import median_of
from benchmarks.flops import our_flops
from benchmarks.jobs import Bench
from benchmarks.report import Result
from benchmarks.step import duel_of, peak_of, problem_of, shape_of
from megatron_longpo.utils.errors import run_command

TIME_TARGET, MEMORY_TARGET = 1.10, 2.05
ROUNDS = 2  # at lengths that the contest of steps does not have, or has one sample of


def cpu_seconds(bench: Bench, scale: Scale, prompt: int) -> float:
    """Our step's time: the samples of the contest of steps, where it has several at this length.

    Its single sample at the greatest length gives freed memory back and pays for page faults that the others do not.
    """
    rounds = dict(scale.lengths).get(prompt, 1)
    names, rounds = (["ours", "two-pass"], rounds) if rounds > 1 else (["ours"], ROUNDS)
    found = duel_of(bench, scale, names, prompt, rounds)
    return median_of(found["ours"]["samples"], "cpu")


def _time_row(shape: str, measured: float, predicted: float) -> Result:
    quotient = measured / predicted
    return Result(
        contest="growth", against="FLOPs by formula", shape=shape, quantity="growth of CPU time", unit="x", ours=measured,
        other=predicted, ratio=max(quotient, 1 / quotient), target=TIME_TARGET,
    )  # fmt: skip


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """Every doubling, and the whole range."""
    times = {prompt: cpu_seconds(bench, scale, prompt) for prompt in scale.growth}
    flops = {prompt: our_flops(problem_of(scale, prompt)) for prompt in scale.growth}
    peaks = {prompt: peak_of(bench, scale, "ours", prompt)["peak"] for prompt in scale.growth}
    steps = list(itertools.pairwise(scale.growth))
    whole = [(scale.growth[0], scale.growth[-1])] if len(steps) > 1 else []
    results = [
        _time_row(f"{shape_of(short)} to {shape_of(long)}", times[long] / times[short], flops[long] / flops[short])
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
