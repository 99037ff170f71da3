"""What holds for every test: one thread, no network, no compiler, and the marker of the folder that the test lies in."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.workers import Workers

# A loaded machine makes a slow example of any, most often the first, which imports.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

# Before torch or transformers are imported; commands that tests start inherit them.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",  # summation order, and two cores shared by several ranks
        "MKL_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",  # Megatron-Core decorates functions with torch.compile; compiling them takes minutes
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
    }
)

# How long an example takes says more of the machine's other work than of the code.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

TESTS = Path(__file__).parent
MARKED_FOLDERS = ("distributed", "golden", "e2e", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, and skip those that need a CUDA device where there is none."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)
    wanting_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if wanting_gpu and not _has_cuda():
        for item in wanting_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def workers() -> "Iterator[Workers]":
    """Pools of gloo ranks, shared by every test of the session."""
    from tests.support.workers import Workers

    pools = Workers()
    yield pools
    pools.close()
