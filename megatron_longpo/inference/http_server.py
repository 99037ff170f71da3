"""One OpenAI-compatible server: a request with a deadline, a limit on what comes back, and a word on what went wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from megatron_longpo.utils.errors import UserError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that another try may change."""
OUT = frozenset({429, 503, 529})
"""Of these, what says that the server has too much to do, whatever the request."""
CONFIGURATION = frozenset({401, 403, 404, 405})
"""Statuses that say that the server is not set up for us: no request would fare better."""
CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 300.0
"""Most that a server's Retry-After is obeyed."""


class TryAgainError(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, message: str, *, is_out: bool = False, wait: float | None = None) -> None:
        """Say what happened.

        Args:
            message: what.
            is_out: the server as a whole cannot answer now; otherwise it may be this request alone.
            wait: for how many seconds the server asks to be left alone.
        """
        super().__init__(message)
        self.is_out, self.wait = is_out, wait


class RefusedError(Exception):
    """A server refuses a request for what it is; asking again would not help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How long and how often a server is asked.

    Attributes:
        concurrency: requests under way at one server.
        timeout: seconds that a request may take, from its first byte to its answer's last.
        max_retries: tries of a request after the first.
    """

    concurrency: int = 16
    timeout: float = 600.0
    max_retries: int = 8


class HttpServer:
    """A server by its base URL (``http://host:port/v1``)."""

    def __init__(self, url: str, limits: Limits, api_key: str | None = None) -> None:
        """Open a pool of connections; nothing is sent yet."""
        self.url = url.rstrip("/")
        self._timeout = limits.timeout
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(limits.timeout, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency),
            trust_env=False,  # a proxy for the outer world is none for a cluster's own servers
        )

    def models(self) -> list[str]:
        """Return the names of the models that it serves.

        Raises:
            UserError: it cannot be reached, or does not tell.
        """
        try:
            answer = self.send("GET", "models", None, max_bytes=1 << 20)
            return [str(model["id"]) for model in answer["data"]]
        except (TryAgainError, RefusedError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.url}: is no OpenAI-compatible server, or not ready ({error}); start it, or mend --server"
            ) from None

    def send(self, method: str, path: str, payload: Any, *, max_bytes: int) -> Any:
        """Send a request and return the JSON of its answer.

        Raises:
            TryAgainError: the connection failed or was cut, the time ran out, the answer is no JSON or too large, or a status
                that may pass.
            RefusedError: a status that will not.
            UserError: a status that no request would escape.
        """
        deadline = time.monotonic() + self._timeout
        try:
            with self._client.stream(method, f"{self.url}/{path}", json=payload) as response:
                body = self._read(response, deadline, max_bytes)
        except httpx2.HTTPError as error:
            is_out = isinstance(error, httpx2.NetworkError | httpx2.ConnectTimeout)
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TryAgainError(said, is_out=is_out) from None
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise UserError(f"{self.url}: not a URL ({error}); give one such as http://localhost:8000/v1") from None
        self._check(response, body)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise TryAgainError(f"the answer is no JSON: {_shorten(body)}") from None

    @staticmethod
    def _read(response: httpx2.Response, deadline: float, max_bytes: int) -> bytes:
        body = bytearray()
        for block in response.iter_bytes():
            body += block
            if len(body) > max_bytes:
                raise TryAgainError(f"the answer has more than {max_bytes} bytes")
            if time.monotonic() > deadline:  # a server that sends a byte now and then never meets the read timeout
                raise TryAgainError("the answer did not end in time")
        return bytes(body)

    def _check(self, response: httpx2.Response, body: bytes) -> None:
        status = response.status_code
        if status < 300:
            return
        said = f"HTTP {status}: {_shorten(body)}"
        if status in CONFIGURATION:
            raise UserError(f"{self.url}: {said}; check --server, --served-model and the API key")
        if status in RETRIED:
            wait = _retry_after(response.headers.get("Retry-After"))
            raise TryAgainError(said, is_out=status in OUT or wait is not None, wait=wait)
        raise RefusedError(said)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def _shorten(body: bytes) -> str:
    text = " ".join(body[:2000].decode(errors="replace").split())
    return text if len(text) <= 200 else text[:200] + " ..."
