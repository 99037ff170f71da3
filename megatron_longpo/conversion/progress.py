"""The progress bar of a conversion: bytes done, rate, time left."""

from __future__ import annotations

import sys
from typing import Any

from megatron_longpo.conversion.workers import Workers


def byte_bar(total: int, label: str, workers: Workers) -> Any:
    """A tqdm bar over ``total`` bytes on stderr; silent on other processes and where stderr is no terminal."""
    from tqdm import tqdm

    hidden = not (workers.is_first and sys.stderr.isatty())
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, disable=hidden)
