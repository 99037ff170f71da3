"""Run every contest, write ``results.json`` and docs/benchmarks.md.

    make bench        under half an hour on two cores
    make bench-full   more lengths, more runs

What was measured before with the same code is kept and not measured again (--force does);
``python -m benchmarks.step`` and so on run one contest.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import FULL, MAKE_BENCH, Scale, arguments, run_contest
from benchmarks.jobs import ROOT, Bench, write_json
from benchmarks.report import Result, console_table, page
from megatron_longpo.utils.errors import run_command

CONTESTS = {
    "startup": "startup:contest",
    "head": "head:contest",
    "pipeline": "pipeline:contest",
    "step-memory": "step:memory",
    "step-two-pass": "step:against_two_pass",
    "growth": "growth:contest",
    "step-trl": "step:against_trl",
    "context_parallel": "context_parallel:contest",
}
"""Contest by the name of its JSON file, in the order in which they run."""
PACKAGES = ("torch", "megatron-core", "transformers", "trl")
PAGE, NOTES = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "NOTES.md"


def machine() -> dict[str, str]:
    """What the contests run on."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "CPU": f"{model[1] if model else platform.processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB",
        "Software": f"Python {platform.python_version()}, {versions}",
        "Commit": _commit(),
        "Load": f"{os.getloadavg()[0]:.1f} on average in the minute before the start; on a quiet machine it is 0",
    }


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def run_all(bench: Bench, scale: Scale) -> Iterator[list[Result]]:
    """Every contest in turn."""
    for name, place in CONTESTS.items():
        module, function = place.split(":")
        yield run_contest(name, getattr(importlib.import_module(f"benchmarks.{module}"), function), bench, scale)


def write_page(target: Path, folder: Path, missing: Sequence[str] = ()) -> None:
    """Make the docs page from ``results.json`` and ``machine.json``, naming the contests that are ``missing``."""
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    described = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    commands = ("make bench        # what this page shows", "make bench-full   # more lengths, more runs")
    partial = target.with_suffix(".partial")
    notes = NOTES.read_text(encoding="utf-8")
    partial.write_text(page([Result.of(row) for row in rows], described, notes, commands, missing), encoding="utf-8")
    partial.replace(target)


def main() -> None:
    """Run the command."""
    given = arguments(__doc__)
    bench, started = Bench(given.output, force=given.force), time.monotonic()
    if os.getloadavg()[0] > 1:
        print(f"warning: the load average is {os.getloadavg()[0]:.1f}; others' work blurs times", file=sys.stderr)
    results: list[Result] = []
    scale = FULL if given.full else MAKE_BENCH
    write_json(given.output / "machine.json", machine() | {"Runs whose median a time is": scale.samples()})
    for done, rows in enumerate(run_all(bench, scale), start=1):
        print(console_table(rows) + "\n", flush=True)
        results += rows
        write_json(given.output / "results.json", [result.to_json() for result in results])
        if not given.full:
            write_page(PAGE, given.output, list(CONTESTS)[done:])
    met = sum(result.met for result in results)
    print(f"{met} of {len(results)} targets met; {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    run_command(main)
