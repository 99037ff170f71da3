"""What every contest's command has in common."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from benchmarks.jobs import ROOT, Bench, write_json
from benchmarks.problem import ModelShape
from benchmarks.report import Result, console_table

RESULTS = ROOT / "build" / "bench"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the contests are.

    Attributes:
        lengths: prompt tokens and how many alternated runs, of the step against the two-pass run.
        memory: prompt tokens at which memory is compared.
        trl: prompt tokens and runs, against TRL.
        growth: prompt tokens, each twice the one before.
        growth_runs: in turns, at every one of them.
        context: prompt tokens and runs, of context parallelism.
        head: rows, vocabulary and runs, of the head.
        pipeline: prompt tokens, answer tokens and runs, of the pipeline.
        startup: pairs.
        preprocess: bytes of pairs and runs, of preprocessing.
        model: size of the model.
        answer: tokens of an answer.
        short: tokens of a reference context.
        threads: of a process that has the machine to itself.
    """

    lengths: tuple[tuple[int, int], ...] = ((4096, 5), (8192, 5), (16384, 1))
    memory: tuple[int, ...] = (8192,)
    trl: tuple[tuple[int, int], ...] = ((8192, 2),)
    growth: tuple[int, ...] = (2048, 4096, 8192, 16384)
    growth_runs: int = 2
    context: tuple[int, int] = (8192, 3)
    head: tuple[int, int, int] = (2048, 152064, 5)
    pipeline: tuple[int, int, int] = (2048, 256, 3)
    startup: int = 1_000_000
    preprocess: tuple[int, int] = (32 << 20, 3)
    model: ModelShape = dataclasses.field(default_factory=ModelShape)
    answer: int = 256
    short: int = 1024
    threads: int = 2

    def samples(self) -> str:
        """Say of how many runs a figure is the median."""
        step, trl = (", ".join(f"{runs} at {tokens // 1024}K" for tokens, runs in some) for some in (self.lengths, self.trl))
        others = {"growth": self.growth_runs, "CP": self.context[1], "head": self.head[2], "PP": self.pipeline[2]}
        return "; ".join([f"step {step}", f"TRL {trl}", *(f"{name} {runs}" for name, runs in others.items())])


MAKE_BENCH = Scale()
FULL = dataclasses.replace(
    MAKE_BENCH,
    lengths=((2048, 5), (4096, 9), (8192, 9), (16384, 3)),
    memory=(4096, 8192, 16384),
    trl=((4096, 5), (8192, 5)),
    context=(8192, 5),
    head=(2048, 152064, 7),
    pipeline=(2048, 256, 7),
    preprocess=(128 << 20, 5),
)

Contest = Callable[[Bench, Scale], list[Result]]


def arguments(description: str | None) -> argparse.Namespace:
    """Options of a contest's command and of the driver."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--force", action="store_true", help="measure again what is there already")
    parser.add_argument("--full", action="store_true", help="more lengths and more runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of models and results (build/bench)")
    return parser.parse_args()


def run_contest(name: str, contest: Contest, bench: Bench, scale: Scale) -> list[Result]:
    """Run a contest and keep its rows as ``NAME.json``."""
    results = contest(bench, scale)
    write_json(bench.folder / f"{name}.json", [result.to_json() for result in results])
    return results


def contest_main(name: str, contest: Contest, description: str | None) -> None:
    """The command of one contest: print the table, write the JSON."""
    given = arguments(description)
    results = run_contest(name, contest, Bench(given.output, force=given.force), FULL if given.full else MAKE_BENCH)
    print(console_table(results))
