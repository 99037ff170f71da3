"""Two pipeline stages of one thread each, 1F1B over eight micro-batches, against the bubble's arithmetic.

A stage is busy ``t`` seconds a micro-batch, forward and backward: its CPU time in the run divided by the micro-batches. With
``m`` micro-batches the schedule cannot end before ``sum(t) + (m - 1) * max(t)``, which for ``p`` equal stages is the known
``(m + p - 1) * t``. The wall time of the schedule, without the optimizer, is compared with that.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contest import Scale, contest_main
from benchmarks.jobs import Bench, Job, reuse_freed_memory
from benchmarks.measure import timed
from benchmarks.problem import Problem, make_models
from benchmarks.report import Result
from benchmarks.step import prepare_model, shape_of
from megatron_longpo.utils.errors import run_command

STAGES, MICRO_BATCHES = 2, 8
VOCAB = 2048  # a small head, so that the stages are nearly equal and there is a bubble to speak of
TARGET = 1.10


def stage_times(problem: dict[str, Any], models: str, rounds: int) -> list[dict[str, float]]:
    """Samples of one stage: its CPU time and wall time of the whole schedule."""
    import torch.distributed as dist

    from benchmarks.ours import OurStep
    from megatron_longpo.config.schema import ParallelConfig
    from megatron_longpo.training.step import run_batches

    wanted = Problem.of(problem)
    _, native = make_models(wanted.model, Path(models))
    step = OurStep.of(wanted, native, parallel=ParallelConfig(pipeline_model_parallel_size=STAGES), pairs=MICRO_BATCHES)
    trainer, batches = step.trainer, step.trainer.batches(step.pairs, step.reference)
    samples = []
    for _ in range(rounds):
        trainer.zero_gradients()
        dist.barrier()
        _, spent = timed(lambda: run_batches(trainer.model, batches, trainer.context, forward_only=False))
        samples.append(spent)
    return samples


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """Median over runs of measured and predicted wall time."""
    prompt, answer, rounds = scale.pipeline
    problem = Problem(prompt=prompt, answer=answer, short=scale.short, model=dataclasses.replace(scale.model, vocab=VOCAB))
    prepare_model(bench, problem.model)
    job = Job(
        name=f"pipeline-{prompt}",
        function="benchmarks.pipeline:stage_times",
        arguments={"problem": dataclasses.asdict(problem), "models": str(bench.models), "rounds": rounds},
        ranks=STAGES,
        environment=reuse_freed_memory(),
    )
    stages = bench.run(job)
    walls, bounds = [], []
    for samples in zip(*stages, strict=True):
        busy = [sample["cpu"] / MICRO_BATCHES for sample in samples]
        walls.append(max(sample["wall"] for sample in samples))
        bounds.append(sum(busy) + (MICRO_BATCHES - 1) * max(busy))
    ratio = statistics.median(wall / bound for wall, bound in zip(walls, bounds, strict=True))
    return [
        Result(
            contest=f"PP={STAGES}", against="the bubble's arithmetic", shape=f"{shape_of(prompt)}, {MICRO_BATCHES} micro-batches",
            quantity="wall time", unit="s", ours=statistics.median(walls), other=statistics.median(bounds), ratio=ratio,
            target=TARGET, details={"stage_cpu": [[sample["cpu"] for sample in samples] for samples in stages]},
        )
    ]  # fmt: skip


if __name__ == "__main__":
    run_command(lambda: contest_main("pipeline", contest, __doc__))
