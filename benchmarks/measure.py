"""CPU time, memory and the machine's matrix-multiply rate, of the process that asks."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Call a function; return its result, and seconds of CPU (user and system, all threads) and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def matmul_rate(size: int = 1024, repeats: int = 7) -> float:
    """Operations a CPU-second of an fp32 product of two ``[size, size]`` matrices, the median of ``repeats``."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    rates = []
    for _ in range(repeats):
        _, spent = timed(lambda: [torch.mm(left, right, out=out) for _ in range(4)])
        rates.append(4 * 2 * size**3 / spent["cpu"])
    return statistics.median(rates)


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def memory_of(function: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """Call a function; return its result, the bytes resident before, and the peak above them.

    Needs ``MALLOC_MMAP_THRESHOLD_=262144`` in the environment: otherwise glibc keeps freed tensors resident.
    """
    before = _status("VmRSS")
    CLEAR_REFS.write_text("5", encoding="ascii")  # the high-water mark starts again from what is resident
    result = function()
    return result, {"standing": before, "peak": _status("VmHWM") - before}
