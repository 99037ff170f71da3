"""What several of these tests start once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import Nursery
from tests.support.scenario import Scenario, make_scenario
from tests.support.slurm import SlurmCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A Slurm of two nodes."""
    slurm = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    # Jobs inherit the submitter's environment: this interpreter's torchrun is theirs.
    slurm.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield slurm
    slurm.stop()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Commands that do not outlive the tests of a file."""
    started = Nursery(tmp_path_factory.mktemp("logs"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Scenario:
    """A tiny model with pairs and the reference cache beside them; a file may have another."""
    made = make_scenario(tmp_path_factory.mktemp("scenario"), num_documents=4, num_words=25, num_hidden_layers=2)
    arguments = ("--reference-checkpoint", made.native, "--data-path", made.prefix)
    nursery.start("tools/precompute_reference_logprobs.py", arguments).succeed()
    return made
