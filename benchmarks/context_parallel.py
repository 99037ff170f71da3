"""Two context-parallel ranks of one thread against one process of two threads, for every kind of exchange.

CPU time of all ranks is compared: what the exchange itself costs. The ranks' own times tell the balance of the plan. The kinds
take turns in the same two processes, so that a slow minute of the machine meets all of them.
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


def rank_steps(problem: dict[str, Any], models: str, layouts: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Samples and answer of one rank, by layout."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from benchmarks.ours import OurStep

    wanted = Problem.of(problem)
    _, native = make_models(wanted.model, Path(models))
    steps = {}
    for name, layout in layouts.items():
        parallel_state.destroy_model_parallel()  # Megatron's own record of groups, which has room for one layout
        steps[name] = OurStep.of(wanted, native, parallel=ParallelConfig(**layout))
    found: dict[str, Any] = {name: {"samples": []} for name in layouts}
    for _ in range(rounds):
        for name, step in steps.items():
            dist.barrier()
            answer, spent = timed(step)
            found[name] |= {"samples": [*found[name]["samples"], spent], **answer}
    return found


def _measure(bench: Bench, scale: Scale, name: str, layouts: dict[str, dict[str, Any]], *, ranks: int) -> dict[str, list[Any]]:
    """What each rank found, by layout."""
    prompt, rounds = scale.context
    arguments = {
        "problem": dataclasses.asdict(problem_of(scale, prompt)), "models": str(bench.models), "layouts": layouts,
        "rounds": rounds,
    }  # fmt: skip
    job = Job(
        name=f"context-{name}-{prompt}", function="benchmarks.context_parallel:rank_steps", arguments=arguments, ranks=ranks,
        threads=RANKS // ranks, environment=reuse_freed_memory(),
    )  # fmt: skip
    found = bench.run(job)
    return {layout: [rank[layout] for rank in found] for layout in layouts}


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
    layouts = {kind: {"context_parallel_size": RANKS, "cp_comm_type": kind} for kind in kinds()}
    (before,) = _measure(bench, scale, "alone-before", {"alone": {}}, ranks=1)["alone"]
    measured = _measure(bench, scale, "exchanges", layouts, ranks=RANKS)
    (after,) = _measure(bench, scale, "alone-after", {"alone": {}}, ranks=1)["alone"]
    check_same({"one process": before, **{kind: ranks[0] for kind, ranks in measured.items()}})
    alone = [{"samples": before["samples"] + after["samples"]}]
    shape = shape_of(scale.context[0])
    return [row for kind, ranks in measured.items() for row in _rows(kind, shape, ranks, alone)]


if __name__ == "__main__":
    run_command(lambda: contest_main("context_parallel", contest, __doc__))
