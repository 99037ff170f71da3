"""Models for tests of what asks models: random ones, and a chain of words that writes questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chain_model import write_chain_model
from tests.support.hf_models import make_hf_model


@pytest.fixture(scope="session")
def chain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that writes questions."""
    return write_chain_model(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with random weights."""
    return make_hf_model(tmp_path_factory.mktemp("random"), "llama")
