"""Fixtures of the parallel tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scenario import Scenario, fill_reference, make_scenario
from tests.support.workers import Workers


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Scenario:
    """A Llama with its reference cache."""
    return _with_reference(tmp_path_factory.mktemp("llama"), "llama", workers)


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory, workers: Workers) -> Scenario:
    """A Qwen3 (QK norms), with tied embeddings, with its reference cache."""
    return _with_reference(tmp_path_factory.mktemp("qwen3"), "qwen3", workers, tie_word_embeddings=True)


def _with_reference(folder: Path, family: str, workers: Workers, **overrides: object) -> Scenario:
    scenario = make_scenario(folder, family, **overrides)
    workers.run(1, fill_reference, scenario)
    return scenario
