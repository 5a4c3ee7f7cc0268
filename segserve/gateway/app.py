"""The HTTP gateway in front of an engine. It forwards requests as they arrive.

TorchServe alone would change its tokens at every start, return 200 from `/ping` while models load,
serve one client's hundred requests before another's first, and drop its requests on SIGTERM.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engines import Engine, EngineRequest, EngineResponse, frontend_json
from ..engines.config import too_large
from ..runtime.errors import BadRequestError, UnavailableError
from .admission import FairQueue, RequestBody, TokenFile
from .forwarding import check_head, declared_bytes, end_to_end, query_options, target_of
from .http_server import JSON, TimedSend, as_response, error_response, json_response
from .metrics import CONTENT_TYPE, GatewayMetrics
from .open_inference import OpenInference
from .openapi import openapi
from .protocols import checked, huggingface_routes
from .settings import GatewaySettings

logger = logging.getLogger("segserve.gateway")

CLIENT_LEFT = 499
"""The client closed the connection. nginx's code; appears only in logs and metrics."""

_openapi_once = cache(openapi)  # takes 70 ms
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_QUIET_PATHS = frozenset({"/ping", "/metrics"})  # requested every few seconds, so not logged
_OWN_HEADERS = [(b"server", b"segserve"), (b"x-content-type-options", b"nosniff")]
_OWN_NAMES = frozenset(name for name, _ in _OWN_HEADERS)
_CLOSE = (b"connection", b"close")


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
        self.not_ready_reason = "the model is being loaded" if engine is None else None
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
        self._metrics = GatewayMetrics(ready=lambda: self.not_ready_reason is None)

    def open(self, engine: Engine) -> None:
        """Starts to forward requests: every model has a worker that is ready."""
        self.engine, self.not_ready_reason = engine, None

    def check_ready(self) -> None:
        """Raises UnavailableError: a model has no worker that is ready."""
        if self.not_ready_reason is not None:
            raise UnavailableError(f"not ready: {self.not_ready_reason}")

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
        timed_send = TimedSend(scope, send, timeout_s)
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
            await timed_send(message)

        self.in_flight += 1
        try:
            async with AsyncExitStack() as exchange:
                scope.setdefault("state", {}).update(exchange=exchange, body=body)
                try:
                    check_head(target_of(scope), scope["headers"])
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
        return _returned(await self._started().manage(self._forwarded(request)))

    async def read_body(self, request: Request) -> bytes:
        """The whole body of a request in another protocol, after its token is checked, and in a
        slot of its client, which is kept until the response is sent.
        """
        self.check_token(request.headers.get("authorization"))
        self._started()
        self._check_declared(request)
        await self._enter_slot(request)
        return b"".join([chunk async for chunk in request.state.body])

    async def predict(
        self, forwarded: EngineRequest, request: Request | None = None
    ) -> EngineResponse:
        """Forwards the native form of a request in another protocol, which has a slot already."""
        check_head(forwarded.target, forwarded.headers)
        if request is not None and await request.state.body.client_left():
            raise BadRequestError("the client closed the connection")
        return await self._started().predict(forwarded)

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Waits for a slot of this client, and holds it within the context."""
        self._started()
        async with AsyncExitStack() as held:
            with self._metrics.waiting():
                await held.enter_async_context(self._queue.slot(client))
            yield

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
        return _returned(await forward(forwarded))

    async def _enter_slot(self, request: Request) -> None:
        """Waits for a slot of the client, and keeps it until the response is sent."""
        await request.state.exchange.enter_async_context(self.slot(self._client_of(request)))

    def _check_declared(self, request: Request) -> None:
        if (declared_bytes(request) or 0) > self.max_request_bytes:
            raise too_large(self.max_request_bytes)

    def _forwarded(self, request: Request) -> EngineRequest:
        self._check_declared(request)
        target, headers = target_of(request.scope), end_to_end(request.headers.raw)
        if options := query_options(request):
            headers = [*headers, *options]
            check_head(target, headers)
        return EngineRequest(
            method=request.method,
            target=target,
            headers=headers,
            body=request.state.body,
            has_body=bool(declared_bytes(request)) or "transfer-encoding" in request.headers,
        )

    def _client_of(self, request: Request) -> str:
        """The client by the proxy's header, else by its address: all have the same token."""
        header = self.settings.client_header
        named = request.headers.get(header) if header else None
        return named or (request.client.host if request.client else "")

    def _started(self) -> Engine:
        if self.engine is None:
            raise UnavailableError(
                f"not ready: {self.not_ready_reason}; try again in a few seconds"
            )
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
            request_bytes=declared_bytes(request),
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


def _returned(response: EngineResponse) -> Response:
    return as_response(response, end_to_end(response.headers))


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
