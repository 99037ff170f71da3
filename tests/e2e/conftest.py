"""What several of these tests start once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm import SlurmCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A Slurm of two nodes."""
    slurm = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    # Jobs inherit the submitter's environment: this interpreter's torchrun is theirs.
    slurm.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield slurm
    slurm.stop()
