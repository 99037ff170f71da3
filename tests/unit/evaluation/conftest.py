from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.evaluation.text import Haystack, load_haystack
from megatron_longpo.inference.engine import PromptTokenizer
from tests.support.evaluation import make_subword_tokenizer


@pytest.fixture(scope="session")
def haystack() -> Haystack:
    return load_haystack(None)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, haystack: Haystack) -> PromptTokenizer:
    """One that merges letters, so that the tokens of a text are not those of its parts."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    make_subword_tokenizer(folder, " ".join(haystack.words[:20000]))
    return PromptTokenizer.load(folder)


@pytest.fixture(scope="session")
def sources(tokenizer: PromptTokenizer, haystack: Haystack) -> Sources:
    return Sources(count=lambda message: len(tokenizer.encode_message(message)), haystack=haystack, seed=7)
