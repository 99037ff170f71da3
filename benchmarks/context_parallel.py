"""Two context-parallel ranks of one thread against one process of two threads, for every kind of exchange.

CPU time of all ranks is compared: what the exchange itself costs. The ranks' own times tell the balance of the plan.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contest import Scale, contest_main
from benchmarks.duel import check_same
from benchmarks.jobs import Bench, Job, reuse_freed_memory
from benchmarks.measure import timed
from benchmarks.problem import Problem, make_models
from benchmarks.report import Result
from benchmarks.step import prepare_model, problem_of, shape_of
from megatron_longpo.config.schema import ParallelConfig
from megatron_longpo.utils.errors import run_command

RANKS = 2
TOTAL_TARGET, BALANCE_TARGET = 1.10, 1.05


def kinds() -> list[str]:
    """Every exchange that ``--cp-comm-type`` offers."""
    field = next(field for field in dataclasses.fields(ParallelConfig) if field.name == "cp_comm_type")
    return [kind for kind in field.metadata["choices"] if kind != "auto"]


def rank_step(problem: dict[str, Any], models: str, parallel: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Samples of one rank."""
    import torch.distributed as dist

    from benchmarks.ours import OurStep

    wanted = Problem.of(problem)
    _, native = make_models(wanted.model, Path(models))
    step = OurStep.of(wanted, native, parallel=ParallelConfig(**parallel))
    samples: list[dict[str, float]] = []
    answer: dict[str, float] = {}
    for _ in range(rounds):
        dist.barrier()
        answer, spent = timed(step)
        samples.append(spent)
    return {"samples": samples, **answer}


def _measure(bench: Bench, scale: Scale, name: str, kind: str | None) -> list[Any]:
    prompt, rounds = scale.context
    parallel = {} if kind is None else {"context_parallel_size": RANKS, "cp_comm_type": kind}
    arguments = {
        "problem": dataclasses.asdict(problem_of(scale, prompt)), "models": str(bench.models), "parallel": parallel,
        "rounds": rounds,
    }  # fmt: skip
    ranks, threads = (1, RANKS) if kind is None else (RANKS, 1)
    job = Job(
        name=f"context-{name}-{prompt}", function="benchmarks.context_parallel:rank_step", arguments=arguments, ranks=ranks,
        threads=threads, environment=reuse_freed_memory(),
    )  # fmt: skip
    return bench.run(job)


def _totals(ranks: list[Any], quantity: str) -> list[float]:
    return [sum(sample[quantity] for sample in samples) for samples in zip(*(rank["samples"] for rank in ranks), strict=True)]


def _rows(kind: str, shape: str, ranks: list[Any], alone: list[Any]) -> list[Result]:
    total, other = statistics.median(_totals(ranks, "cpu")), statistics.median(_totals(alone, "cpu"))
    each = [statistics.median(sample["cpu"] for sample in rank["samples"]) for rank in ranks]
    wall = [statistics.median(sample["wall"] for sample in rank[0]["samples"]) for rank in (ranks, alone)]
    common: dict[str, Any] = {"contest": f"CP={RANKS} {kind}", "shape": shape, "unit": "s"}
    return [
        Result(
            **common, against=f"one process, {RANKS} threads", quantity="total CPU time", ours=total, other=other,
            ratio=total / other, target=TOTAL_TARGET, details={"wall": wall},
        ),
        Result(
            **common, against="the other rank", quantity="CPU time of a rank", ours=max(each), other=min(each),
            ratio=max(each) / min(each), target=BALANCE_TARGET,
        ),
    ]  # fmt: skip


def contest(bench: Bench, scale: Scale) -> list[Result]:
    """All kinds, between two measurements of the one process."""
    prepare_model(bench, scale.model)
    before = _measure(bench, scale, "alone-before", None)
    measured = {kind: _measure(bench, scale, kind, kind) for kind in kinds()}
    after = _measure(bench, scale, "alone-after", None)
    check_same({"one process": before[0], **{kind: ranks[0] for kind, ranks in measured.items()}})
    alone = [{"samples": before[0]["samples"] + after[0]["samples"]}]
    shape = shape_of(scale.context[0])
    return [row for kind, ranks in measured.items() for row in _rows(kind, shape, ranks, alone)]


if __name__ == "__main__":
    run_command(lambda: contest_main("context_parallel", contest, __doc__))
