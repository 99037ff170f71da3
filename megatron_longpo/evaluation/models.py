"""The models that are evaluated, each with its tokenizer and an engine that answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation.naming import name_paths
from megatron_longpo.inference.engine import Engine, PromptTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model is: a folder, by the name that it has in the results."""

    name: str
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model that can be asked.

    Attributes:
        name: in the results.
        tokenizer: with its chat template.
        engine: answers.
        context_length: positions that the model announces; None where a server has it.
        folder: the Hugging Face folder in this process; None where a server has the model.
    """

    name: str
    tokenizer: PromptTokenizer
    engine: Engine
    context_length: int | None
    folder: Path | None


def name_places(texts: Sequence[str]) -> tuple[Place, ...]:
    """Read ``FOLDER`` or ``NAME=FOLDER``.

    Raises:
        UserError: two have the same name, or a name cannot be a folder's.
    """
    named = name_paths("--model ", texts, lambda path: path.resolve().name, "before")
    return tuple(Place(name=name, folder=folder) for name, folder in named)


def open_folder(place: Place, *, dtype: str, rotary_base: float | None, batch_tokens: int, group_size: int) -> Model:
    """Load a Hugging Face folder into this process.

    Raises:
        UserError: it cannot be read.
    """
    from megatron_longpo.inference.transformers_engine import TransformersEngine
    from megatron_longpo.parallel.cpu_backend import device

    tokenizer = PromptTokenizer.load(place.folder)
    engine = TransformersEngine.load(
        place.folder, tokenizer, dtype=dtype, device=device(), max_batch_tokens=batch_tokens, group_size=group_size
    )
    return Model(
        name=place.name,
        tokenizer=tokenizer,
        engine=engine if rotary_base is None else engine.with_rotary_base(rotary_base),
        context_length=engine.context_length,
        folder=place.folder,
    )


def open_server(name: str | None, urls: Sequence[str], tokenizer_folder: Path, limits: dict[str, Any], **options: Any) -> Model:
    """Reach an OpenAI-compatible server, or several replicas.

    Args:
        name: in the results; None: the served model's.
        urls: the servers.
        tokenizer_folder: Hugging Face folder of the model's tokenizer.
        limits: fields of `http_server.Limits`.
        options: ``api_key``, and ``model`` and ``extra`` of `server_engine.ServerEngine`.

    Raises:
        UserError: it cannot be reached, or does not serve the model.
    """
    from megatron_longpo.inference.http_server import HttpServer, Limits
    from megatron_longpo.inference.server_engine import ServerEngine, ServerPool

    tokenizer, limited = PromptTokenizer.load(tokenizer_folder), Limits(**limits)
    servers = [HttpServer(url, limited, options.get("api_key")) for url in urls]
    engine = ServerEngine(ServerPool(servers, limited), tokenizer, model=options.get("model"), extra=options.get("extra"))
    return Model(
        name=name or re.sub(r"[^\w.@+-]+", "-", engine.model).strip("-") or "server",
        tokenizer=tokenizer,
        engine=engine,
        context_length=None,
        folder=None,
    )
