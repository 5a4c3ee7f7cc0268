"""The HTTP gateway in front of an engine. It forwards requests as they arrive.

TorchServe alone would change its tokens at every start, return 200 from `/ping` while models load,
serve one client's hundred requests before another's first, and drop its requests on SIGTERM.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engines import Engine, EngineRequest, EngineResponse, Headers, frontend_json
from ..engines.config import too_large
from ..runtime.errors import BadRequestError, UnavailableError
from ..runtime.request import OPTION_HEADER_PREFIX
from .admission import FairQueue, RequestBody, TokenFile
from .http_server import JSON, TimedResponse, error_response, json_response
from .metrics import CONTENT_TYPE, GatewayMetrics
from .open_inference import OpenInference
from .openapi import openapi
from .protocols import checked, huggingface_routes
from .settings import GatewaySettings

logger = logging.getLogger("segserve.gateway")

CLIENT_LEFT = 499
"""The client closed the connection. nginx's code; appears only in logs and metrics."""

_openapi_once = cache(openapi)  # takes 70 ms
_MAX_PATH_BYTES, _MAX_HEADERS_BYTES = 4_000, 7_680
"""TorchServe reads a line of 4,096 bytes and 8,192 bytes of headers, and
closes a connection with more, often before its response is read."""
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_QUIET_PATHS = frozenset({"/ping", "/metrics"})  # requested every few seconds, so not logged
_OWN_HEADERS = [(b"server", b"segserve"), (b"x-content-type-options", b"nosniff")]
_OWN_NAMES = frozenset(name for name, _ in _OWN_HEADERS)
_CLOSE = (b"connection", b"close")
_SINGLE_CONNECTION_HEADERS = frozenset(  # RFC 9110, section 7.6.1, and the token
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"}
    | {b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"host", b"authorization"}
)


class Gateway:
    """Three ASGI applications: predictions, metrics, and the management API if it has a token.

    Without an `engine`, requests are rejected with 503; without a `token`, predictions need none.
    """

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        token: TokenFile | None,
        management_token: TokenFile | None,
        settings: GatewaySettings,
        max_request_bytes: int,
    ) -> None:
        self.engine = engine
        self.obstacle = "the model is being loaded" if engine is None else None
        """Why the server is not ready; None if every model has a worker that is ready."""
        self.closing = False
        """Whether to close each connection after its response."""
        self.in_flight, self.lost = 0, 0
        """The requests without a complete response, and those cancelled at shutdown."""
        self.settings, self.max_request_bytes = settings, max_request_bytes
        self._token, self._management_token = token, management_token
        self._queue = FairQueue(
            in_flight=settings.client_in_flight, waiting=settings.client_waiting
        )
        self._metrics = GatewayMetrics(ready=lambda: self.obstacle is None)

    def open(self, engine: Engine) -> None:
        """Starts to forward requests: every model has a worker that is ready."""
        self.engine, self.obstacle = engine, None

    def check_ready(self) -> None:
        """Raises UnavailableError: a model has no worker that is ready."""
        if self.obstacle is not None:
            raise UnavailableError(f"not ready: {self.obstacle}")

    def inference_app(self) -> ASGIApp:
        """`/predictions`, the description of models, `/ping` and `/openapi.json`."""
        return self._app(
            Route("/ping", self._ping),
            Route("/openapi.json", self._openapi),
            Route("/predictions/{path:path}", self._predict, methods=_METHODS),
            Route("/models", self._describe),
            Route("/models/{path:path}", self._describe),
            *OpenInference(self).routes(),
            *huggingface_routes(self),
        )

    def metrics_app(self) -> ASGIApp:
        """`GET /metrics` for Prometheus: the engine's metrics and the gateway's own."""
        return self._app(Route("/metrics", self._show_metrics))

    def management_app(self) -> ASGIApp | None:
        """The engine's whole management API; None if it has no token."""
        if self._management_token is None:
            return None
        return self._app(Route("/{path:path}", self._manage, methods=_METHODS))

    def _app(self, *routes: Route) -> ASGIApp:
        router = Router(routes, redirect_slashes=False)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["app"] = router  # so that unknown paths and methods raise an HTTPException
                await self._exchange(router, scope, receive, send)

        return app

    async def _exchange(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Keeps a slot until the response is sent, adds headers, and records the response."""
        began_s = time.perf_counter()
        timeout_s = self.settings.request_timeout_s
        body = RequestBody(receive, max_bytes=self.max_request_bytes, timeout_s=timeout_s)
        is_sending, status, sent_bytes = False, CLIENT_LEFT, 0

        async def send_and_count(message: Message) -> None:
            nonlocal is_sending, status, sent_bytes
            if message["type"] == "http.response.start":
                is_sending = True
                status = CLIENT_LEFT if await body.client_left() else message["status"]
                kept = [header for header in message["headers"] if header[0] not in _OWN_NAMES]
                message["headers"] = [*kept, *_OWN_HEADERS, *([_CLOSE] if self.closing else [])]
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        self.in_flight += 1
        try:
            async with AsyncExitStack() as exchange:
                scope.setdefault("state", {}).update(exchange=exchange, body=body)
                try:
                    _check_head(_target(scope), scope["headers"])
                    await app(scope, receive, send_and_count)
                except Exception as error:
                    if is_sending:
                        raise
                    await error_response(error)(scope, receive, send_and_count)
        except asyncio.CancelledError:
            self.lost += 1
            raise
        finally:
            self.in_flight -= 1
            self._record(scope, status, sent_bytes, time.perf_counter() - began_s)

    async def _ping(self, _: Request) -> Response:
        self.check_ready()
        return Response(frontend_json({"status": "Healthy"}), media_type=JSON)

    async def _openapi(self, _: Request) -> Response:
        return json_response(_openapi_once())

    async def _predict(self, request: Request) -> Response:
        self.check_token(request.headers.get("authorization"))
        return await self._in_slot(request, self._started().predict)

    async def _describe(self, request: Request) -> Response:
        """Takes a slot too: with `customized=true`, a worker handles the request."""
        self.check_token(request.headers.get("authorization"))
        return await self._in_slot(request, self._started().describe)

    async def _manage(self, request: Request) -> Response:
        if self._management_token is not None:
            self._management_token.check(request.headers.get("authorization"))
        return self._response(await self._started().manage(self._forwarded(request)))

    async def read_body(self, request: Request) -> bytes:
        """The whole body of a request in another protocol, after its token is checked."""
        self.check_token(request.headers.get("authorization"))
        self._check_declared(request)
        return b"".join([chunk async for chunk in request.state.body])

    async def predict(self, request: Request, forwarded: EngineRequest) -> EngineResponse:
        """Forwards the native form of a request in another protocol, in a slot of its client."""
        engine = self._started()
        _check_head(forwarded.target, forwarded.headers)
        await self._enter_slot(request)
        return await engine.predict(forwarded)

    async def predict_for(self, client: str, forwarded: EngineRequest) -> EngineResponse:
        """As `predict`, without a request over HTTP."""
        engine = self._started()
        _check_head(forwarded.target, forwarded.headers)
        async with self._queue.slot(client):
            return await engine.predict(forwarded)

    def check_token(self, authorization: str | None) -> None:
        """Raises FrontendError: the token of predictions is missing or wrong."""
        if self._token is not None:
            self._token.check(authorization)

    async def description(self, model: str) -> Mapping[str, Any]:
        """The engine's description of a model, with its workers."""
        target = f"/models/{quote(model)}".encode()
        empty = EngineRequest("GET", target, [], body=_nothing(), has_body=False)
        response = await self._started().describe(empty)
        [described] = orjson.loads(checked(response).body)
        return described  # type: ignore[no-any-return]

    async def _show_metrics(self, _: Request) -> Response:
        of_engine = await self.engine.metrics() if self.engine is not None else b""
        return Response(of_engine + self._metrics.as_text(), headers={"content-type": CONTENT_TYPE})

    async def _in_slot(
        self, request: Request, forward: Callable[[EngineRequest], Awaitable[EngineResponse]]
    ) -> Response:
        forwarded = self._forwarded(request)
        await self._enter_slot(request)
        if await request.state.body.client_left():  # skip the computation
            return Response(status_code=CLIENT_LEFT)
        return self._response(await forward(forwarded))

    async def _enter_slot(self, request: Request) -> None:
        """Waits for a slot of the client, and keeps it until the response is sent."""
        with self._metrics.waiting():
            slot = self._queue.slot(self._client_of(request))
            await request.state.exchange.enter_async_context(slot)

    def _check_declared(self, request: Request) -> None:
        if (_declared_bytes(request) or 0) > self.max_request_bytes:
            raise too_large(self.max_request_bytes)

    def _forwarded(self, request: Request) -> EngineRequest:
        self._check_declared(request)
        target, headers = _target(request.scope), _end_to_end(request.headers.raw)
        if options := _query_options(request):
            headers = [*headers, *options]
            _check_head(target, headers)
        return EngineRequest(
            method=request.method,
            target=target,
            headers=headers,
            body=request.state.body,
            has_body=bool(_declared_bytes(request)) or "transfer-encoding" in request.headers,
        )

    def _response(self, response: EngineResponse) -> Response:
        end_to_end = response._replace(headers=_end_to_end(response.headers))
        return TimedResponse(end_to_end, timeout_s=self.settings.request_timeout_s)

    def _client_of(self, request: Request) -> str:
        """The client by the proxy's header, else by its address: all have the same token."""
        header = self.settings.client_header
        named = request.headers.get(header) if header else None
        return named or (request.client.host if request.client else "")

    def _started(self) -> Engine:
        if self.engine is None:
            raise UnavailableError(f"not ready: {self.obstacle}; try again in a few seconds")
        return self.engine

    def _record(self, scope: Scope, status: int, sent_bytes: int, seconds: float) -> None:
        request, path = Request(scope), scope["path"]
        is_translated = path.startswith(("/v2/", "/hf/")) and request.method == "POST"
        self.record(
            request.method,
            path,
            status,
            seconds,
            is_prediction=scope.get("endpoint") == self._predict or is_translated,
            request_bytes=_declared_bytes(request),
            response_bytes=sent_bytes,
            client=request.client.host if request.client else None,
            traceparent=request.headers.get("traceparent"),
        )

    def record(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        *,
        is_prediction: bool,
        **fields: object,
    ) -> None:
        """Counts and logs a response, except those to health checks and scrapes."""
        if is_prediction:
            self._metrics.count_response(status)
        if path in _QUIET_PATHS:
            return
        timed = {"status": status, "duration_ms": round(seconds * 1000, 1)}
        known = {name: value for name, value in fields.items() if value is not None}
        logged = {"method": method, "path": path, **timed, **known}
        logger.info("%s %s %s", method, path, status, extra={"fields": logged})


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _declared_bytes(request: Request) -> int | None:
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


def _end_to_end(headers: Headers) -> Headers:
    """Without the headers of a single connection; names in lower case."""
    lower = [(name.lower(), value) for name, value in headers]
    return [header for header in lower if header[0] not in _SINGLE_CONNECTION_HEADERS]


def _query_options(request: Request) -> Headers:
    """Options in the query as headers, unless a header sets them. TorchServe drops the query."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(
        request.scope["query_string"].decode("latin-1"), keep_blank_values=True
    ):
        header = f"{OPTION_HEADER_PREFIX}{name.lower()}"
        options[header] = f"{options[header]},{value}" if header in options else value
    return [
        (name.encode(), value.encode())
        for name, value in options.items()
        if name not in request.headers
    ]


def _target(scope: Scope) -> bytes:
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _check_head(target: bytes, headers: Headers) -> None:
    headers_bytes = sum(len(name) + len(value) + len(": \r\n") for name, value in headers)
    for size, limit, name in [
        (len(target), _MAX_PATH_BYTES, "path"),
        (headers_bytes, _MAX_HEADERS_BYTES, "headers"),
    ]:
        if size > limit:
            raise BadRequestError(f"{name}: {size} bytes, the limit is {limit}")
