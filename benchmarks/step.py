"""Our training step against the public method's, and against TRL's DPOTrainer: CPU time, memory, and efficiency of both."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.contest import Scale, contest_main
from benchmarks.duel import efficiency, median_of
from benchmarks.flops import dpo_flops, our_dpo_flops, our_flops, two_pass_flops
from benchmarks.jobs import Bench, Job, keep_freed_memory_out, reuse_freed_memory
from benchmarks.problem import ModelShape, Problem
from benchmarks.report import Result
from megatron_longpo.utils.errors import run_command

TIME_MARGIN = 0.02
MEMORY_TARGET = 0.52
EFFICIENCY_TARGET = 0.75


def problem_of(scale: Scale, prompt: int) -> Problem:
    """The problem of a prompt's length."""
    return Problem(prompt=prompt, answer=scale.answer, short=scale.short, model=scale.model)


def prepare_model(bench: Bench, shape: ModelShape) -> None:
    """Make the model in one process."""
    arguments = {"shape": dataclasses.asdict(shape), "folder": str(bench.models)}
    bench.run(Job(name=f"model-{shape.name}", function="benchmarks.problem:prepare", arguments=arguments))


def duel_of(bench: Bench, scale: Scale, names: list[str], prompt: int, rounds: int) -> dict[str, Any]:
    """Alternated samples of contestants.

    A single round is for a length at which one side's freed memory would not fit beside the other's: there it is given back.
    """
    described = dataclasses.asdict(problem_of(scale, prompt))
    given = {"names": names, "problem": described, "models": str(bench.models), "rounds": rounds}
    job = Job(
        name=f"time-{'-'.join(names)}-{prompt}",
        function="benchmarks.duel:duel",
        arguments=given,
        threads=scale.threads,
        environment=reuse_freed_memory() if rounds > 1 else keep_freed_memory_out(),
    )
    return bench.run(job)[0]


def peak_of(bench: Bench, scale: Scale, name: str, prompt: int) -> dict[str, int]:
    """Memory of one contestant."""
    described = dataclasses.asdict(problem_of(scale, prompt))
    job = Job(
        name=f"memory-{name}-{prompt}",
        function="benchmarks.duel:peak",
        arguments={"name": name, "problem": described, "models": str(bench.models)},
        threads=scale.threads,
        environment=keep_freed_memory_out(),
    )
    return bench.run(job)[0]


def _time_row(found: dict[str, Any], names: tuple[str, str], shape: str, against: str, flop_ratio: float) -> Result:
    ours, other = (found[name] for name in names)
    times = [median_of(side["samples"], "cpu") for side in (ours, other)]
    details = {
        "flop_ratio": flop_ratio,
        "wall": [median_of(side["samples"], "wall") for side in (ours, other)],
        "samples": [[sample["cpu"] for sample in side["samples"]] for side in (ours, other)],
        "loss": [ours["loss"], other["loss"]],
        "grad_norm": [ours["grad_norm"], other["grad_norm"]],
    }
    return Result(
        contest="step", against=against, shape=shape, quantity="CPU time", unit="s", ours=times[0], other=times[1],
        ratio=times[0] / times[1], target=flop_ratio + TIME_MARGIN, details=details,
    )  # fmt: skip


def against_two_pass(bench: Bench, scale: Scale) -> list[Result]:
    """CPU time at every length, and efficiency where there are several samples."""
    results = []
    for prompt, rounds in scale.lengths:
        problem = problem_of(scale, prompt)
        found = duel_of(bench, scale, ["ours", "two-pass"], prompt, rounds)
        flops = our_flops(problem), two_pass_flops(problem)
        shape, against = shape_of(prompt), "two passes on transformers"
        results.append(_time_row(found, ("ours", "two-pass"), shape, against, flops[0] / flops[1]))
        if rounds > 1:
            results += _efficiency_rows(found, flops, shape)
    return results


def _efficiency_rows(found: dict[str, Any], flops: tuple[float, float], shape: str) -> list[Result]:
    shares = [efficiency(found[name]["samples"], count) for name, count in zip(("ours", "two-pass"), flops, strict=True)]
    matmul = median_of(found["ours"]["samples"], "matmul")
    common: dict[str, Any] = {"contest": "efficiency", "shape": shape, "quantity": "useful FLOPs", "at_most": False}
    return [
        Result(
            **common, against="fp32 matrix products", unit="GFLOP/s", ours=shares[0] * matmul / 1e9, other=matmul / 1e9,
            ratio=shares[0], target=EFFICIENCY_TARGET,
        ),
        Result(
            **common, against="two passes on transformers", unit="share of matrix products", ours=shares[0], other=shares[1],
            ratio=shares[0] / shares[1], target=1.0,
        ),
    ]  # fmt: skip


def memory(bench: Bench, scale: Scale) -> list[Result]:
    """Peak above what stands between steps."""
    results = []
    for prompt in scale.memory:
        ours, other = (peak_of(bench, scale, name, prompt) for name in ("ours", "two-pass"))
        results.append(
            Result(
                contest="step", against="two passes on transformers", shape=shape_of(prompt), quantity="peak memory", unit="MB",
                ours=ours["peak"] / 1e6, other=other["peak"] / 1e6, ratio=ours["peak"] / other["peak"], target=MEMORY_TARGET,
                details={"standing_mb": [ours["standing"] / 1e6, other["standing"] / 1e6]},
            )
        )  # fmt: skip
    return results


def against_trl(bench: Bench, scale: Scale) -> list[Result]:
    """The same DPO loss on the same long pair, both with the reference's log-probs at hand."""
    results = []
    for prompt, rounds in scale.trl:
        problem = problem_of(scale, prompt)
        found = duel_of(bench, scale, ["ours-dpo", "trl"], prompt, rounds)
        ratio = our_dpo_flops(problem) / dpo_flops(problem)
        results.append(_time_row(found, ("ours-dpo", "trl"), shape_of(prompt), "TRL's DPOTrainer", ratio))
    return results


def shape_of(prompt: int) -> str:
    """A length as it is written in tables."""
    return f"{prompt // 1024}K" if prompt % 1024 == 0 else str(prompt)


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """All of it."""
    return [*against_two_pass(bench, scale), *memory(bench, scale), *against_trl(bench, scale)]


if __name__ == "__main__":
    run_command(lambda: contest_main("step", contest, __doc__))
