"""Run every contest, write ``results.json`` and docs/benchmarks.md.

    make bench        under half an hour on two cores
    make bench-full   more lengths, more runs

What was measured before is kept and not measured again (--force does); ``python -m benchmarks.step`` and so on run one contest.
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
from pathlib import Path
from typing import Any

from benchmarks.contest import FULL, MAKE_BENCH, Scale, arguments, run_contest
from benchmarks.jobs import ROOT, Bench, write_json
from benchmarks.report import Result, console_table, page
from megatron_longpo.utils.errors import run_command

CONTESTS = ("step", "growth", "context_parallel", "head", "pipeline")
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
    }


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def run_all(bench: Bench, scale: Scale) -> list[Result]:
    """Every contest in turn."""
    results = []
    for name in CONTESTS:
        rows = run_contest(name, importlib.import_module(f"benchmarks.{name}").contest, bench, scale)
        print(console_table(rows) + "\n", flush=True)
        results += rows
    return results


def write_page(target: Path, folder: Path) -> None:
    """Make the docs page from ``results.json`` and ``machine.json``."""
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    described = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    commands = ("make bench        # what this page shows", "make bench-full   # more lengths, more runs")
    partial = target.with_suffix(".partial")
    partial.write_text(
        page([Result.of(row) for row in rows], described, NOTES.read_text(encoding="utf-8"), commands), encoding="utf-8"
    )
    partial.replace(target)


def main() -> None:
    """Run the command."""
    given = arguments(__doc__)
    bench, started = Bench(given.output, force=given.force), time.monotonic()
    load = os.getloadavg()[0]
    if load > 1:
        print(f"warning: the load average is {load:.1f}; times taken on a busy machine say little", file=sys.stderr)
    results = run_all(bench, FULL if given.full else MAKE_BENCH)
    write_json(given.output / "results.json", [result.to_json() for result in results])
    write_json(given.output / "machine.json", machine())
    if not given.full:
        write_page(PAGE, given.output)
    met = sum(result.met for result in results)
    print(f"{met} of {len(results)} targets met; {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    run_command(main)
