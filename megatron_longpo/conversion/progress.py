"""The progress bar of a conversion: bytes done, rate, time left."""

from __future__ import annotations

from typing import Any

from megatron_longpo.conversion.workers import Workers
from megatron_longpo.utils.progress import progress_bar


def byte_bar(total: int, label: str, workers: Workers) -> Any:
    """A bar over ``total`` bytes; silent on other processes."""
    return progress_bar(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, shown=workers.is_first)
