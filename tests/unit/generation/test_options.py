import argparse
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.generation.engines import build_generator, load_tokenizer
from megatron_longpo.generation.filters import FILTERS
from megatron_longpo.generation.options import add_arguments, read_settings
from megatron_longpo.generation.settings import GenerationSettings
from megatron_longpo.inference.server_engine import ServerEngine
from megatron_longpo.utils.errors import UserError
from tests.support.scripted_generation import OpenAIServer


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return parser.parse_args(["--input", "in", "--output", "out", *map(str, arguments)])


def settings(*arguments: object) -> GenerationSettings:
    return read_settings(parse(*arguments))


def test_presets_are_the_published_settings_at_their_lengths() -> None:
    paper, release = settings("--seq-length", 131072), settings("--seq-length", 131072, "--preset", "release")
    assert (paper.num_turns, paper.answer_sampling.temperature, paper.turn_order) == (4, 0.0, "document")
    assert (paper.max_chunk_tokens, paper.min_document_tokens, paper.max_document_tokens) == (32768, 65536, None)
    assert (release.num_turns, release.answer_sampling.temperature, release.answer_sampling.top_p) == (2, 1.0, 1.0)
    assert (release.min_chunk_tokens, release.max_chunk_tokens, release.turn_order) == (16384, 30000, "shuffled")
    assert settings("--seq-length", 524288).min_document_tokens == 65536


@pytest.mark.parametrize("length", [16, 2048, 4096, 131072])
@pytest.mark.parametrize("preset", ["paper", "release"])
def test_defaults_fit_every_length(length: int, preset: str) -> None:
    made = settings("--seq-length", length, "--preset", preset)
    assert 1 <= made.min_chunk_tokens <= made.max_chunk_tokens <= max(1, length // 4)
    assert made.min_document_tokens <= length // 2
    given = settings("--seq-length", length, "--preset", preset, "--max-chunk-tokens", 7)
    assert (given.min_chunk_tokens <= 7, given.max_chunk_tokens) == (True, 7)
    given = settings("--seq-length", length, "--preset", preset, "--min-chunk-tokens", 70)
    assert (given.min_chunk_tokens, given.max_chunk_tokens >= 70) == (70, True)


def test_each_filter_can_be_off() -> None:
    assert settings().filters.enabled == frozenset(FILTERS)
    for name in FILTERS:
        assert settings("--skip-filter", name).filters.enabled == frozenset(FILTERS) - {name}


def test_a_question_generator_is_loaded_from_its_file_and_known_by_its_content(tmp_path: Path, random_model: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def ask(chunk, number, seed):\n    return [f'{chunk} {number} {seed}?']\n\ndef bad(*_):\n    return 1 / 0\n")
    with OpenAIServer() as server:
        common: tuple[Any, ...] = ("--server", server.url, "--tokenizer-model", random_model, "--question-generator")
        arguments = parse(*common, f"{file}:ask")
        generator = build_generator(arguments, read_settings(arguments), load_tokenizer(arguments))
        assert generator.make_questions("c", 2, 3) == ["c 2 3?"]
        assert generator.questions_by.startswith("mine.py:ask:")
        arguments = parse(*common, f"{file}:bad")
        broken = build_generator(arguments, read_settings(arguments), load_tokenizer(arguments))
        with pytest.raises(UserError, match="ZeroDivisionError"):
            broken.make_questions("c", 2, 3)
        for place, message in ((f"{file}:none", "has no function 'none'"), (f"{tmp_path}/gone.py:f", "No such file")):
            arguments = parse(*common, place)
            with pytest.raises(UserError, match=message):
                build_generator(arguments, read_settings(arguments), load_tokenizer(arguments))


def test_whole_documents_may_be_answered_elsewhere_and_the_declared_base_is_recorded(random_model: Path) -> None:
    with OpenAIServer() as near, OpenAIServer(models=("scripted",)) as far:
        arguments = parse(
            *("--server", near.url, "--long-server", far.url, "--tokenizer-model", random_model, "--rotary-base", 1e7),
            *("--request-extra", '{"cache_prompt": false}', "--concurrency", 3, "--seq-length", 2048),
        )
        generator = build_generator(arguments, read_settings(arguments), load_tokenizer(arguments))
        assert isinstance(generator.short, ServerEngine)
        assert (generator.short.concurrency, generator.context_length) == (3, 2048)
        assert generator.long.describe() == {
            "engine": "server", "model": "scripted", "rotary_base": 1e7, "extra": {"cache_prompt": False},
        }  # fmt: skip
        assert generator.short.describe()["rotary_base"] is None
        for engine, server in ((generator.short, near), (generator.long, far)):
            assert list(engine.complete(["Text\n\nWhat?"], generator.settings.answer_sampling, [0]))
            assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model FOLDER, or --server URL with --tokenizer-model"),
        (["--tokenizer-model", "MODEL"], "give one of --model .* and --server"),
        (["--model", "MODEL", "--server", "http://x"], "give one of --model .* and --server"),
        (["--model", "MODEL", "--long-server", "http://x"], "--long-server goes with --server"),
        (["--server", "http://x", "--tokenizer-model", "MODEL", "--request-extra", "["], "--request-extra: not JSON"),
        (["--server", "http://x", "--tokenizer-model", "MODEL", "--request-extra", "3"], "give a JSON object"),
        (["--server", "http://x", "--tokenizer-model", "MODEL", "--concurrency", "0"], "--concurrency must be above 0"),
        (["--model", "MODEL", "--engine", "vllm"], "vLLM is not installed"),
        (["--model", "MODEL", "--engine", "vllm", "--rotary-base", "1e7"], "has one RoPE base"),
    ],
)
def test_flags_that_cannot_work_together_are_refused(random_model: Path, arguments: list[str], message: str) -> None:
    given = parse(*(str(random_model) if word == "MODEL" else word for word in arguments))
    with pytest.raises(UserError, match=message):
        build_generator(given, read_settings(given), load_tokenizer(given))
