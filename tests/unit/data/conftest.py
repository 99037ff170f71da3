import random

import pytest

from megatron_longpo.data.tokenizer import ChatTokenizer, TokenizerSpec
from tests.support.chat_templates import SHAPES, TemplateShape
from tests.support.make_data import make_record, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory):
    """A Hugging Face folder for each template shape, with the same vocabulary."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        name: make_tokenizer(
            root / name, 400, shape.template, shape.special_tokens, shape.bos_token, shape.end_of_turn, adds_bos=True
        )
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="session")
def tokenizers(tokenizer_folders) -> dict[str, ChatTokenizer]:
    return {name: TokenizerSpec(str(folder)).load() for name, folder in tokenizer_folders.items()}


@pytest.fixture(params=sorted(SHAPES))
def shape(request, tokenizers) -> tuple[TemplateShape, ChatTokenizer]:
    return SHAPES[request.param], tokenizers[request.param]


@pytest.fixture
def record():
    return make_record(random.Random(7), "a document", num_turns=3)
