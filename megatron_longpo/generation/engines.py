"""Which engine answers: what the flags of tools/generate_preference_data.py name."""

from __future__ import annotations

import argparse
import hashlib
import os
import runpy
from pathlib import Path

from megatron_longpo.generation.pipeline import Generator, QuestionMaker
from megatron_longpo.generation.settings import GenerationSettings
from megatron_longpo.inference.engine import Engine, PromptTokenizer
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.json_flags import parse_json_object


def load_tokenizer(arguments: argparse.Namespace) -> PromptTokenizer:
    """Load the tokenizer that counts.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    path = arguments.tokenizer_model or arguments.model
    if path is None:
        raise UserError("give --model FOLDER, or --server URL with --tokenizer-model FOLDER")
    return PromptTokenizer.load(path)


def build_generator(arguments: argparse.Namespace, settings: GenerationSettings, tokenizer: PromptTokenizer) -> Generator:
    """Load or reach the model, and put the pipeline together.

    Raises:
        UserError: flags contradict each other, or the model cannot be read or reached.
    """
    if (arguments.model is None) == (arguments.server is None):
        raise UserError("give one of --model (in this process) and --server (elsewhere)")
    if arguments.long_server and not arguments.server:
        raise UserError("--long-server goes with --server")
    if arguments.server:
        short, long, positions = _servers(arguments, tokenizer)
    elif arguments.engine == "vllm":
        short, long, positions = _vllm(arguments, tokenizer)
    else:
        short, long, positions = _transformers(arguments, tokenizer)
    if arguments.documents_per_group < 1:
        raise UserError("--documents-per-group must be at least 1")
    make_questions, questions_by = load_question_maker(arguments.question_generator)
    return Generator(short, long, tokenizer, positions, settings, make_questions, questions_by)


def _transformers(arguments: argparse.Namespace, tokenizer: PromptTokenizer) -> tuple[Engine, Engine, int]:
    from megatron_longpo.inference.transformers_engine import TransformersEngine
    from megatron_longpo.parallel.cpu_backend import device

    limits = {"max_batch_tokens": arguments.max_batch_tokens, "group_size": arguments.documents_per_group}
    engine = TransformersEngine.load(arguments.model, tokenizer, dtype=arguments.dtype, device=device(), **limits)
    long = engine if arguments.rotary_base is None else engine.with_rotary_base(arguments.rotary_base)
    return engine, long, arguments.context_length or engine.context_length


def _vllm(arguments: argparse.Namespace, tokenizer: PromptTokenizer) -> tuple[Engine, Engine, int]:
    from megatron_longpo.inference.transformers_engine import fingerprint_folder
    from megatron_longpo.inference.vllm_engine import VllmEngine

    if arguments.rotary_base is not None:
        raise UserError("--engine vllm has one RoPE base; for --rotary-base run two servers and give --server and --long-server")
    positions = arguments.context_length or arguments.seq_length
    fingerprint = fingerprint_folder(arguments.model)
    engine = VllmEngine.load(
        arguments.model, tokenizer, dtype=arguments.dtype, context_length=positions, fingerprint=fingerprint,
        group_size=arguments.documents_per_group,
    )  # fmt: skip
    return engine, engine, positions


def _servers(arguments: argparse.Namespace, tokenizer: PromptTokenizer) -> tuple[Engine, Engine, int]:
    from megatron_longpo.inference.http_server import HttpServer, Limits
    from megatron_longpo.inference.server_engine import ServerEngine, ServerPool

    extra = parse_json_object("--request-extra", arguments.request_extra, '{"cache_prompt": false}')
    for name in ("concurrency", "request_timeout"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    if arguments.max_retries < 0:
        raise UserError("--max-retries must be at least 0")
    limits = Limits(concurrency=arguments.concurrency, timeout=arguments.request_timeout, max_retries=arguments.max_retries)
    key = os.environ.get(arguments.api_key_variable)

    def engine(urls: list[str]) -> ServerEngine:
        pool = ServerPool([HttpServer(url, limits, key) for url in urls], limits)
        return ServerEngine(pool, tokenizer, model=arguments.served_model, extra=extra)

    short = engine(arguments.server)
    long = engine(arguments.long_server) if arguments.long_server else short
    if arguments.rotary_base is not None:
        long = long.with_rotary_base(arguments.rotary_base)
    return short, long, arguments.context_length or arguments.seq_length


def load_question_maker(place: str | None) -> tuple[QuestionMaker | None, str]:
    """Load ``FILE.py:FUNCTION``; the name that is recorded has a hash of the file."""
    if place is None:
        return None, "model"
    file, _, name = place.rpartition(":")
    path = Path(file)
    try:
        content = path.read_bytes()
        function = runpy.run_path(str(path)).get(name)
    except OSError as error:
        raise UserError(f"--question-generator {place}: {error.strerror}; give FILE.py:FUNCTION") from None
    except Exception as error:  # it is the user's code
        raise UserError(f"--question-generator {place}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UserError(f"--question-generator {place}: the file has no function {name!r}")

    def make_questions(chunk: str, number: int, seed: int) -> list[str]:
        try:
            made = list(function(chunk, number, seed))
        except Exception as error:  # it is the user's code
            raise UserError(f"--question-generator {place}: {type(error).__name__}: {error}") from error
        if not all(isinstance(question, str) for question in made):
            raise UserError(f"--question-generator {place}: must return strings, gave {made!r:.100}")
        return made

    return make_questions, f"{path.name}:{name}:{hashlib.sha256(content).hexdigest()}"
