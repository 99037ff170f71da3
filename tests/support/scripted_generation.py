"""A model that is a function of what it is asked, as an engine and as an OpenAI-compatible server that can misbehave."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from megatron_longpo.generation.documents import Document
from megatron_longpo.inference.engine import Completion
from megatron_longpo.inference.sampling import Sampling


def make_document(name: str, num_paragraphs: int = 8) -> Document:
    """Paragraphs that each start with a mark of their own."""
    paragraphs = [f"p{number} of {name}: " + "some words here, " * 5 for number in range(num_paragraphs)]
    return Document(document_id=name, text="\n\n\n".join(paragraphs) + "\n", metadata={"kind": "made up"}, domain="text")


def answer(message: str, seed: int, bad_chunks: Collection[str] = (), cut_off: Collection[str] = ()) -> Completion:
    """Write two questions that name the last paragraph of a chunk; answer with the length of what stands above the question."""
    context, _, instruction = message.rpartition("\n\n")
    if "Reply with one word" in instruction:
        return Completion("Yes.", "stop", 2)
    if "Reply with one letter" in instruction:
        first = message.index("Answer A: The text has "), message.index("Answer B: The text has ")
        lengths = [int(message[place + len("Answer A: The text has ") :].split()[0]) for place in first]
        return Completion("A" if lengths[0] < lengths[1] else "B", "stop", 2)
    if not instruction.startswith("Write "):
        reason = "length" if any(mark in instruction for mark in cut_off) else "stop"
        return Completion(f"The text has {len(context)} characters in it, seed {seed % 97}.", reason, 7)
    mark = context.split("\n\n")[-1].split()[0]
    if mark in bad_chunks:
        return Completion("I would rather not.", "stop", 5)
    return Completion(f"1. What does paragraph {mark} say after 1945?\n2. Why does {mark} say it?", "stop", 30)


@dataclasses.dataclass
class ScriptedEngine:
    """The model as an engine; remembers what it was asked."""

    bad_chunks: tuple[str, ...] = ()
    cut_off: tuple[str, ...] = ()
    group_size: int = 8
    concurrency: int = 1
    asked: list[str] = dataclasses.field(default_factory=list)

    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[dict[int, Completion]]:
        for place in (place for place in range(len(messages)) if place not in done):
            self.asked.append(messages[place])
            yield {place: self.reply(messages[place], seeds[place])}

    def reply(self, message: str, seed: int) -> Completion:
        return answer(message, seed, self.bad_chunks, self.cut_off)

    def score(self, message: str, answer: str) -> float | None:
        self.asked.append(message)
        special = {"fails": None, "infinite": -math.inf}
        return special[answer] if answer in special else -float(len(answer))

    def describe(self) -> dict[str, Any]:
        return {"engine": "scripted"}


FAULTS = ("slow", "429", "500", "cut", "truncated", "no-choices", "not-json", "null", "enormous", "trickle")
"""Ways to misbehave, each of which another try may mend."""
ENOUGH = 8 << 20


class OpenAIServer:
    """A server on a free port of this machine, answering from a function.

    Attributes:
        asked: every chat request whose body arrived, in order.
        answered: of each message, how often a whole good answer was sent, or begun to be.
        most_at_once: most chat requests that were under way at one time.
    """

    def __init__(
        self,
        reply: Callable[[str, int], Completion] = answer,
        *,
        faults: Callable[[str, int], str | None] = lambda message, tries: None,
        delay: float = 0.0,
        complete_prompt: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        models: Sequence[str] = ("scripted",),
        upstream: str | None = None,
    ) -> None:
        """Start.

        Args:
            reply: message and seed -> answer.
            faults: message and the number of earlier tries of it -> one of `FAULTS`, or None to behave.
            delay: seconds that an answer takes.
            complete_prompt: the completions endpoint, payload -> answer.
            models: what it serves.
            upstream: another server, which answers in place of ``reply``: then this one only counts and misbehaves.
        """
        self.upstream = upstream
        self.asked: list[dict[str, Any]] = []
        self.answered: collections.Counter[str] = collections.Counter()
        self.most_at_once = 0
        self._tries: collections.Counter[str] = collections.Counter()
        self._at_once = 0
        self._lock = threading.Lock()
        self.reply, self.faults, self.delay, self.complete_prompt, self.models = reply, faults, delay, complete_prompt, models
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *unused: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.send_body(200, json.dumps({"data": [{"id": name} for name in outer.models]}).encode())

            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/chat/completions"):
                    outer._chat(self, payload)
                elif outer.complete_prompt is None:
                    self.send_body(400, b'{"error": "echo is not supported"}')
                else:
                    self.send_body(200, json.dumps(outer.complete_prompt(payload)).encode())

            def send_body(self, status: int, body: bytes, headers: dict[str, str] | None = None, claim: int = 0) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(claim or len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *unused: Any) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _chat(self, handler: Any, payload: dict[str, Any]) -> None:
        message, seed = payload["messages"][0]["content"], payload["seed"]
        with self._lock:
            self.asked.append(payload)
            tries = self._tries[message]
            self._tries[message] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay)
            fault = self.faults(message, tries)
            body = self._ask_upstream(payload) if self.upstream else self._body(self.reply(message, seed))
            if fault is None:
                with self._lock:
                    self.answered[message] += 1
                handler.send_body(200, body)
            else:
                self._misbehave(handler, fault, body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _ask_upstream(self, payload: dict[str, Any]) -> bytes:
        answered = httpx2.post(f"{self.upstream}/chat/completions", json=payload, timeout=300.0, trust_env=False)
        assert answered.status_code == 200, answered.text
        return answered.content

    @staticmethod
    def _body(completion: Completion) -> bytes:
        choice = {"message": {"role": "assistant", "content": completion.text}, "finish_reason": completion.finish_reason}
        return json.dumps({"choices": [choice], "usage": {"completion_tokens": completion.num_tokens}}).encode()

    def _misbehave(self, handler: Any, fault: str, body: bytes) -> None:
        plain = {
            "429": (429, b"busy", {"Retry-After": "3"}),
            "503": (503, b"starting", {}),
            "500": (500, b"<html>oops</html>", {}),
            "400": (400, b'{"error": "too long"}', {}),
            "401": (401, b'{"error": "who are you"}', {}),
            "truncated": (200, body[: len(body) // 2], {}),
            "no-choices": (200, b'{"choices": []}', {}),
            "not-json": (200, b"hello", {}),
            "null": (200, body.replace(b'"content": "', b'"content": null, "c": "'), {}),
            "enormous": (200, body + b" " * ENOUGH, {}),
        }
        if fault in plain:
            handler.send_body(*plain[fault])
        elif fault == "cut":
            handler.send_body(200, body[:-5], claim=len(body))
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif fault in ("slow", "trickle"):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            for byte in body if fault == "trickle" else ():
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.05)
            time.sleep(2.0)
            handler.close_connection = True
        else:
            raise AssertionError(fault)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> OpenAIServer:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def some_faults(seed: int, share: float, kinds: Sequence[str] = FAULTS, worst: int = 3) -> Callable[[str, int], str | None]:
    """Misbehave at a share of all tries, but not more than ``worst`` times at one message."""
    rng = random.Random(seed)
    return lambda message, tries: rng.choice(kinds) if tries < worst and rng.random() < share else None
