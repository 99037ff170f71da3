"""One training iteration on a device of choice, in a process that sees no other."""

from __future__ import annotations

import multiprocessing as mp
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

from megatron_longpo.config.schema import RunConfig


def train_on(device: str, config: RunConfig, folder: Path, *, engine: bool = False) -> dict[str, float]:
    """Train one iteration as `tests.support.layouts.train_and_dump` does.

    Args:
        device: ``cpu`` or ``cuda``.
        config: the run.
        folder: gets ``gradients/`` and ``weights/``.
        engine: build layers of Transformer Engine's modules where it is installed; otherwise of ours.

    Returns:
        The iteration's metrics.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    with mock.patch.dict(os.environ, hidden), ProcessPoolExecutor(1, mp.get_context("spawn")) as pool:
        return pool.submit(_train, config, str(folder), engine).result()


def _train(config: RunConfig, folder: str, engine: bool) -> dict[str, float]:
    import torch.distributed as dist

    from megatron_longpo.models import transformer_config
    from megatron_longpo.parallel import cpu_backend
    from tests.support.layouts import train_and_dump

    if not engine:
        transformer_config.has_transformer_engine = lambda: False
    cpu_backend.install()
    dist.init_process_group(cpu_backend.communication_backend(), store=dist.HashStore(), rank=0, world_size=1)
    return train_and_dump(config, folder, 1)["metrics"][0]
