"""HTTP: uvicorn with several ports and time limits, and the responses of the gateway."""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import h11
import orjson
import uvicorn
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from ..engines import (
    EngineResponse,
    FrontendError,
    Headers,
    ServerError,
    unknown_method,
    unknown_path,
)
from ..runtime.errors import BadRequestError, InternalError, SegserveError, UnavailableError

logger = logging.getLogger("segserve.gateway")
logging.getLogger("uvicorn").setLevel(logging.WARNING)

JSON = "application/json"
_CHUNK_BYTES = 2**16

_MAX_HEAD_BYTES = 2**14  # of a request's line and headers while they arrive
_BACKLOG = 512
_LINGER_S = 5  # how long the rest of a body is read and discarded after an early response
_IDLE_S = 75  # how long a connection may stay open between two requests


class _Protocol(H11Protocol):
    """HTTP/1.1 whose ASGI scope has `state["abort"]`, which closes the connection at once.

    After a response to a request that is still arriving, uvicorn reads the rest, so that the client
    can read the response. Here that is limited in time.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:
            self.loop.call_later(_LINGER_S, self._abort_if_unread, self.cycle)

    def _abort_if_unread(self, cycle: RequestResponseCycle) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Responds to a request that is not HTTP with a JSON error."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        error = BadRequestError("the request is not valid HTTP/1.1")
        headers = [("content-type", JSON), ("connection", "close")]
        for event in (
            h11.Response(status_code=error.status, reason="Bad Request", headers=headers),
            h11.Data(data=orjson.dumps(error.as_document())),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, as the gateway has its own."""

    late_request_s = 0.0
    """How long an open connection may send its request after the last one was accepted."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        await asyncio.sleep(self.late_request_s)
        await super().shutdown(sockets)


def bind(host: str, port: int, variable: str) -> socket.socket:
    """Binds a listening socket. Connections wait until the socket is served.

    Raises ServerError: the address is in use or not permitted. `variable` sets the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is given. Without it, each response
    # waits 40 ms between its headers and its body.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror}; set another address with "
            f"SEGSERVE_HOST and {variable}"
        ) from error
    return listener


@asynccontextmanager
async def serving(
    apps: Mapping[socket.socket, ASGIApp], *, drain_timeout_s: float, late_request_s: float = 0.5
) -> AsyncIterator[None]:
    """Serves each application on its socket.

    At the end, it accepts no new connections and completes the pending requests, which may take
    `drain_timeout_s`.
    """
    by_port = {listener.getsockname()[1]: app for listener, app in apps.items()}

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await by_port[scope["server"][1]](scope, receive, send)

    server = _Server(
        uvicorn.Config(
            dispatch,
            http=_Protocol,
            ws="none",
            lifespan="off",
            backlog=_BACKLOG,
            access_log=False,
            log_config=None,
            server_header=False,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=math.ceil(drain_timeout_s),
        )
    )
    server.late_request_s = late_request_s
    task = asyncio.create_task(server.serve(sockets=list(apps)))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class TimedSend:
    """Sends a response that the client must read within a time limit.

    It is sent in chunks, because uvicorn waits for a slow client before each chunk but the first.
    A client that is too slow is disconnected, because a response stays in memory until it is read.
    """

    def __init__(self, scope: Scope, send: Send, timeout_s: float) -> None:
        self._scope, self._send, self._timeout_s = scope, send, timeout_s
        self._deadline: float | None = None
        self._is_aborted = False

    async def __call__(self, message: Message) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        if self._is_aborted:
            return
        try:
            async with asyncio.timeout_at(self._deadline):
                for part in _parts(message):
                    await self._send(part)
        except TimeoutError:
            logger.warning("a response was not read within %g s", self._timeout_s)
            self._is_aborted = True
            self._scope["state"]["abort"]()


def _parts(message: Message) -> Iterator[Message]:
    """A part of a body in chunks. The last one is empty, so that the others are read before it."""
    if message["type"] == "http.response.body":
        body = memoryview(message.get("body", b""))
        for offset in range(0, len(body), _CHUNK_BYTES):
            chunk = bytes(body[offset : offset + _CHUNK_BYTES])
            yield {"type": message["type"], "body": chunk, "more_body": True}
        message = {**message, "body": b""}
    yield message


def as_response(response: EngineResponse, headers: Headers) -> Response:
    """The response of an engine with these headers, whose length is added."""
    result = Response(response.body, response.status)
    kept = [header for header in headers if header[0] != b"content-length"]
    result.raw_headers = [*kept, (b"content-length", str(len(response.body)).encode())]
    return result


def json_response(document: object, status: int = 200) -> Response:
    """A JSON document, with Retry-After if the server is not available."""
    headers = {"retry-after": "2"} if status == UnavailableError.status else None
    return Response(orjson.dumps(document), status, headers, JSON)


def error_response(error: Exception) -> Response:
    """The JSON response for an exception. The details of an internal error go only to the log."""
    match error:
        case FrontendError():
            return Response(error.body, error.status, media_type=JSON)
        case HTTPException(status_code=405):
            return error_response(unknown_method())
        case HTTPException():
            return error_response(unknown_path())
        case SegserveError():
            return json_response(error.as_document(), error.status)
    logger.error("a request failed", exc_info=error)
    return error_response(InternalError("the server failed at this request; its log says why"))
