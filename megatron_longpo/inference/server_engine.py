"""An engine that is one or several OpenAI-compatible servers: vLLM, SGLang, llama.cpp, Ollama."""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.http_server import HttpServer, Limits, RefusedError, TryAgainError
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.inference.threads import in_threads
from megatron_longpo.utils.errors import UserError

FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.5, 60.0
"""A try waits twice as long as the one before it, within these, and a random part less."""
REMEMBERED_TEXTS = 65536
MOST_FAILURES = 8
"""So many requests in a row without an answer, each after all its tries, end the run: it is not the requests."""
UNFINISHED = frozenset({"abort", "error", "content_filter"})
"""Finish reasons of an answer that is no whole one."""
ENOUGH_BYTES = 1 << 20
BYTES_PER_TOKEN = 256
"""An answer's JSON may have `ENOUGH_BYTES`, and so much for each token that was asked for; more is not read."""

NO_ECHO = "--logprob-margin needs a server that echoes them (vLLM, SGLang), or a model in this process"

Answer = TypeVar("Answer")


@dataclasses.dataclass
class _Place:
    """A server, with what is under way there.

    Attributes:
        server: the server.
        slots: lets in as many requests as may be under way.
        load: requests under way or waiting for a slot.
        rests_until: when it may be asked again after it failed.
    """

    server: HttpServer
    slots: threading.Semaphore
    load: int = 0
    rests_until: float = 0.0


class ServerPool:
    """Servers of one model. Requests about one text go to one server, new texts to the one with the least to do.

    A server that is out rests, and others take its work; a request that fails by itself waits by itself.
    """

    def __init__(self, servers: Sequence[HttpServer], limits: Limits, *, wait: Callable[[float], None] = time.sleep) -> None:
        """Take the servers; ``wait`` sleeps."""
        self._places = [_Place(server, threading.Semaphore(limits.concurrency)) for server in servers]
        self._limits, self._wait = limits, wait
        self.concurrency = limits.concurrency * len(servers)
        self._homes: collections.OrderedDict[str, _Place] = collections.OrderedDict()
        self._lock = threading.Lock()

    def ask(self, text: str, send: Callable[[HttpServer], Answer]) -> Answer:
        """Send a request until it succeeds: again after a pause, and elsewhere if its server is out.

        Args:
            text: what the request is about; it decides on the server.
            send: sends to a server.

        Raises:
            RefusedError: as `HttpServer.send`.
            TryAgainError: the last try's, after ``max_retries`` others.
            UserError: as `HttpServer.send`.
        """
        digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        for attempt in range(self._limits.max_retries + 1):
            place = self._enter(digest)
            try:
                if (rest := place.rests_until - time.monotonic()) > 0:  # no other server is awake
                    self._wait(rest)
                with place.slots:
                    return send(place.server)
            except TryAgainError as error:
                if attempt == self._limits.max_retries:
                    raise
                pause = self._pause(attempt, error)
                if error.is_out:
                    place.rests_until = max(place.rests_until, time.monotonic() + pause)
                else:
                    self._wait(pause)
            finally:
                with self._lock:
                    place.load -= 1
        raise AssertionError("the last try returns or raises")

    @staticmethod
    def _pause(attempt: int, error: TryAgainError) -> float:
        longest = min(LAST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
        return error.wait if error.wait is not None else random.uniform(longest / 2, longest)

    @property
    def servers(self) -> list[HttpServer]:
        """All of them."""
        return [place.server for place in self._places]

    def _enter(self, digest: str) -> _Place:
        """Choose a server and add to its load: the home of the text unless it rests, else the one with the least to do."""
        with self._lock:
            now = time.monotonic()
            home = self._homes.get(digest)
            if home is None or home.rests_until > now:
                awake = [place for place in self._places if place.rests_until <= now]
                home = min(awake or self._places, key=lambda place: place.load)
            self._homes[digest] = home
            self._homes.move_to_end(digest)
            if len(self._homes) > REMEMBERED_TEXTS:
                self._homes.popitem(last=False)
            home.load += 1
            return home


class ServerEngine:
    """Answers user messages by the chat endpoint; see `Engine`.

    Each request stands alone, so answers depend on no other; whether the same one comes back twice is up to the server.
    """

    group_size = 1

    def __init__(
        self,
        pool: ServerPool,
        tokenizer: PromptTokenizer,
        *,
        model: str | None = None,
        rotary_base: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Ask every server for its models.

        Args:
            pool: replicas of one model.
            tokenizer: the model's.
            model: its name there; None: the only one that they serve.
            rotary_base: what the servers were started with, as far as the caller knows; for the record.
            extra: further fields of every request.

        Raises:
            UserError: a server cannot be reached or does not serve the model.
        """
        self.tokenizer, self.rotary_base, self.extra = tokenizer, rotary_base, extra or {}
        self.concurrency = pool.concurrency
        self.model = _find_model(pool.servers, model)
        self._pool = pool
        self._has_answered, self._has_scored, self._failures = False, False, 0

    def with_rotary_base(self, base: float) -> ServerEngine:
        """Return an engine of the same servers that declares a RoPE base."""
        engine = copy.copy(self)
        engine.rotary_base = base
        return engine

    def describe(self) -> dict[str, Any]:
        """Return the model's name, the declared RoPE base and the further fields. Which replica answers is no part of it."""
        return {"engine": "server", "model": self.model, "rotary_base": self.rotary_base, "extra": self.extra}

    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[dict[int, Completion]]:
        """Answer each message; see `Engine`."""
        missing = [place for place in range(len(messages)) if place not in done]

        def answer(place: int) -> Completion:
            return self._complete(messages[place], sampling, seeds[place])

        # The first message of each text goes ahead of the others, which then find the text in the server's cache.
        texts: dict[str, list[int]] = {}
        for place in missing:
            texts.setdefault(_text_of(messages[place]), []).append(place)
        for wave in ([places[0] for places in texts.values()], [place for places in texts.values() for place in places[1:]]):
            for place, completion in in_threads(answer, wave, min(self.concurrency, len(wave))):
                yield {place: completion}

    def _complete(self, message: str, sampling: Sampling, seed: int) -> Completion:
        payload = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % 2**31,
            **self.extra,
        }
        max_bytes = ENOUGH_BYTES + BYTES_PER_TOKEN * sampling.max_new_tokens

        def send(server: HttpServer) -> Completion:
            return self._read(server.send("POST", "chat/completions", payload, max_bytes=max_bytes))

        try:
            completion = self._pool.ask(_text_of(message), send)
        except TryAgainError as error:
            if not self._has_answered:
                raise UserError(f"no server has answered anything ({error}); look at the server's log") from None
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise UserError(
                    f"{self._failures} requests in a row got no answer (the last: {error}); look at the servers, "
                    "the same command goes on"
                ) from None
            return Completion("", "failed", 0, str(error))
        except RefusedError as error:
            if not self._has_answered:  # a refusal of everything is no property of one request
                raise UserError(f"the server refuses the first request ({error}); mend the options of the request") from None
            return Completion("", "failed", 0, str(error))
        self._has_answered, self._failures = True, 0
        return completion

    def _read(self, answer: Any) -> Completion:
        """Read the answer of the chat endpoint.

        Raises:
            TryAgainError: it is none.
        """
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            ended = choice.get("finish_reason")
            reason = "length" if ended == "length" else "stop"
            if isinstance(ended, str) and ended in UNFINISHED:
                raise TypeError(f"it ended by {ended}")
            if not isinstance(text, str):
                raise TypeError(f"content is {type(text).__name__}")
            text.encode()
        except (KeyError, IndexError, TypeError, AttributeError, UnicodeError) as error:
            raise TryAgainError(f"the answer has no message in text ({type(error).__name__}: {error})") from None
        usage = answer.get("usage") or {}
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int):
            [tokens] = self.tokenizer.count_tokens([text])
        return Completion(text.strip(), reason, tokens)  # type: ignore[arg-type]

    def score(self, message: str, answer: str) -> float | None:
        """Sum the log-probs of an answer; see `Engine`. The server must echo log-probs of a prompt, as vLLM and SGLang do."""
        prompt = self.tokenizer.render_message(message)
        text = prompt + self.tokenizer.end_answer(answer)
        payload = {
            "model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1,
            "add_special_tokens": False, **self.extra,
        }  # fmt: skip
        max_bytes = ENOUGH_BYTES + BYTES_PER_TOKEN * len(text)
        try:
            found = self._pool.ask(
                _text_of(message), lambda server: server.send("POST", "completions", payload, max_bytes=max_bytes)
            )
        except (TryAgainError, RefusedError) as error:
            if self._has_scored:
                return None
            raise UserError(f"the server gives no log-probs of a prompt ({error}); {NO_ECHO}") from None
        try:
            logprobs = found["choices"][0]["logprobs"]
            places = zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
            score = float(sum(value for offset, value in places if len(prompt) <= offset < len(text)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"the server gives no log-probs of a prompt ({type(error).__name__}: {error}); {NO_ECHO}") from None
        self._has_scored = True
        return score


def _text_of(message: str) -> str:
    """Return what a message is about: all that stands above its last blank line."""
    text, _, asked = message.rpartition("\n\n")
    return text or asked


def _find_model(servers: Sequence[HttpServer], wanted: str | None) -> str:
    """The model's name, which every server must know."""
    for server in servers:
        names = server.models()
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted not in names:
            shown = ", ".join(names[:8]) or "none"
            cure = "name one with --served-model" if wanted is None else f"which is not {wanted!r}"
            raise UserError(f"{server.url}: serves {shown}; {cure}")
    assert wanted is not None
    return wanted
