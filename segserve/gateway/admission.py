"""Which requests are admitted: the token, a body's size and duration, a client's slots.

The engine's queue is first in, first out for all clients together. If one client sends a hundred
requests at once, all others wait for a hundred responses. If each client has only a few requests in
the queue, the others wait only for those few.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from starlette.types import Receive

from ..engines import BadTokenError, ServerError
from ..engines.config import too_large
from ..runtime.errors import BadRequestError, OverloadedError, RequestTimeoutError
from ..runtime.files import write_whole

logger = logging.getLogger("segserve.gateway")

_MIN_CHARACTERS = 16
_SCHEME = "Bearer "


class TokenFile:
    """A bearer token in a file, as Docker and Kubernetes provide secrets. A change is noticed.

    Raises:
        ServerError: the file cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = _read(path)
        self._changed_ns = path.stat().st_mtime_ns
        self._is_lost = False

    @classmethod
    def generate(cls, path: Path) -> "TokenFile":
        """Writes a random token to a new file, which only this user can read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{secrets.token_urlsafe(24)}\n", mode=0o600)
        return cls(path)

    def check(self, authorization: str | None) -> None:
        """Raises BadTokenError: the header lacks the token. Every wrong token takes the same
        time.
        """
        given = (authorization or "").encode("utf-8", "surrogateescape")  # may hold any bytes
        if not secrets.compare_digest(given, f"{_SCHEME}{self._current()}".encode()):
            raise BadTokenError

    def _current(self) -> str:
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._token, self._changed_ns = _read(self._path), changed_ns
            self._is_lost = False
        except (OSError, ServerError) as error:  # the file is being replaced, or is gone
            if not self._is_lost:
                logger.warning(
                    "%s: the last token stays valid; to revoke it, write another one", error
                )
            self._is_lost = True
        return self._token


def _read(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ServerError(f"cannot read the token in {path}: {reason}") from error
    if not re.fullmatch(rf"[\x21-\x7e]{{{_MIN_CHARACTERS},}}", token):
        raise ServerError(
            f"{path} must hold one token of at least {_MIN_CHARACTERS} letters, digits and signs "
            "without spaces; make one with: openssl rand -hex 32"
        )
    return token


@dataclass
class _Client:
    """The slots of one client, and the number of its requests that hold one or wait for one."""

    slots: asyncio.Semaphore
    requests: int = 0


class FairQueue:
    """A queue for every client: `in_flight` requests hold a slot, `waiting` more may wait."""

    def __init__(self, *, in_flight: int, waiting: int) -> None:
        self._in_flight = in_flight
        self._max_requests = in_flight + waiting
        self._clients: dict[str, _Client] = {}

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[None]:
        """Holds a slot of this client. Raises OverloadedError: too many of its requests wait."""
        client = self._clients.setdefault(name, _Client(asyncio.Semaphore(self._in_flight)))
        if client.requests >= self._max_requests:
            raise OverloadedError(
                f"{client.requests} of your requests are here already; send fewer at once, or "
                "again later"
            )
        client.requests += 1
        try:
            async with client.slots:
                yield
        finally:
            client.requests -= 1
            if not client.requests:
                del self._clients[name]


class RequestBody:
    """A request's body, in chunks as it arrives. The limits are those of the whole body."""

    def __init__(self, receive: Receive, *, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._peeked: Any = None
        self._complete = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the chunks.

        Raises:
            TooLargeError: the body is larger than the limit.
            RequestTimeoutError: the body takes longer than the limit.
            BadRequestError: the client left.
        """
        received_bytes = 0
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while not self._complete:
            chunk = await self._next(deadline)
            received_bytes += len(chunk)
            if received_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            if chunk:
                yield chunk

    async def client_left(self) -> bool:
        """Whether the client has closed the connection. Never waits, and loses no chunk."""
        if self._peeked is None:
            with anyio.CancelScope() as scope:
                scope.cancel()
                self._peeked = await self._receive()
        return self._peeked is not None and self._peeked["type"] == "http.disconnect"

    async def _next(self, deadline: float) -> bytes:
        message, self._peeked = self._peeked, None
        try:
            async with asyncio.timeout_at(deadline):
                message = message or await self._receive()
        except TimeoutError:
            raise RequestTimeoutError(
                f"the request did not arrive whole within {self._timeout_s:g} s; send it faster, "
                "or the image smaller"
            ) from None
        if message["type"] == "http.disconnect":
            self._peeked = message
            raise BadRequestError("the client closed the connection")
        self._complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk
