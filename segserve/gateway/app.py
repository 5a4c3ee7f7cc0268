"""The HTTP gateway in front of TorchServe: stable tokens, correct readiness, and a shutdown that
loses no request.

TorchServe's own tokens change at every start. Its `/ping` returns 200 while models load. Its queue
is first in, first out, however many requests one client sends. On SIGTERM it drops its requests.
The gateway knows nothing about images:
it forwards requests as they arrive.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

from aiohttp import hdrs, web

from ..runtime.errors import UnavailableError
from .fair_queue import Turns
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .responses import SENDER_GONE, log, refusal_for
from .tokens import TokenFile
from .upstream import Behind, TorchServePlaces

logger = logging.getLogger("segserve.gateway")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TURN = web.RequestKey("turn", AsyncExitStack)  # a request's slot, released after its response
_OWN_HEADERS = {
    hdrs.SERVER: "segserve",
    "X-Content-Type-Options": "nosniff",
}  # aiohttp's own would reveal versions


class Door:
    """Three applications: predictions, metrics, and the management API if it has a token.

    Args:
        token: for predictions.
        management_token: for the management API; None disables that application.
    """

    def __init__(
        self, token: TokenFile, management_token: TokenFile | None, limits: Limits
    ) -> None:
        self._token = token
        self._management_token = management_token
        self._limits = limits
        self._turns = Turns(in_flight=limits.client_in_flight, waiting=limits.client_waiting)
        self._behind: Behind | None = None
        self.obstacle: str | None = "the model is being loaded"
        """Why the server is not ready; None if a worker is ready."""
        self._metrics = Metrics(ready=lambda: self.obstacle is None)
        self.closing = False
        """Whether to close each connection after its pending response."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._behind is not None:
            await self._behind.close()

    def open(self, places: TorchServePlaces) -> None:
        """Starts forwarding requests."""
        self._behind = Behind(places, self._limits)
        self.obstacle = None

    def inference_app(self) -> web.Application:
        """`/predictions`, the description of models, and `/ping`: 200 if a worker is ready, else
        503.
        """
        app = self._app()
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/predictions/{tail:.+}", self._predict)
        app.router.add_get("/models", self._describe)
        app.router.add_get("/models/{tail:.+}", self._describe)
        return app

    def metrics_app(self) -> web.Application:
        """`GET /metrics` for Prometheus: TorchServe's metrics and the gateway's own."""
        app = self._app()
        app.router.add_get("/metrics", self._tell_metrics)
        return app

    def management_app(self) -> web.Application | None:
        """TorchServe's whole management API; None if it has no token."""
        if self._management_token is None:
            return None
        app = self._app()
        app.router.add_route("*", "/{tail:.*}", self._manage)
        return app

    def _app(self) -> web.Application:
        return web.Application(middlewares=[self._answered])

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: converts errors to JSON, logs every response, and keeps the slot until the
        response is sent.
        """
        async with AsyncExitStack() as request[_TURN]:
            return await self._answer(request, handler)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        try:
            response = await handler(request)
        except Exception as error:
            response = refusal_for(error)
        response.headers.update(_OWN_HEADERS)
        if self.closing:
            response.force_close()
        await self._send(request, response)
        status = response.status if request.transport is not None else SENDER_GONE
        if request.match_info.handler == self._predict:
            self._metrics.count_answer(status)
        log(request, response, status, time.perf_counter() - began)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        """Sends a response. A response stays in memory until the client reads it, so slow clients
        are disconnected.
        """
        try:
            async with asyncio.timeout(self._limits.request_s):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            logger.warning("an answer was not read within %g s", self._limits.request_s)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:  # the client left
            pass

    async def _ping(self, _: web.Request) -> web.Response:
        if self.obstacle is not None:
            raise UnavailableError(f"not ready: {self.obstacle}")
        return web.json_response({"status": "Healthy"})

    async def _predict(self, request: web.Request) -> web.Response:
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._in_turn(request, self._opened().predict)

    async def _describe(self, request: web.Request) -> web.Response:
        """Takes a concurrency slot too: with `customized=true`, the request waits in the queue of
        the predictions.
        """
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._in_turn(request, self._opened().describe)

    async def _in_turn(
        self, request: web.Request, pass_on: Callable[[web.Request], Awaitable[web.Response]]
    ) -> web.Response:
        with self._metrics.waiting():
            await request[_TURN].enter_async_context(self._turns.turn(self._client(request)))
        if request.transport is None:  # the client left while it waited: skip the computation
            return web.Response(status=SENDER_GONE)
        return await pass_on(request)

    async def _tell_metrics(self, _: web.Request) -> web.Response:
        torchserves = await self._behind.metrics() if self._behind else b""
        return web.Response(
            body=torchserves + self._metrics.exposed(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE}
        )

    async def _manage(self, request: web.Request) -> web.Response:
        assert self._management_token is not None  # noqa: S101 - for mypy
        self._management_token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._opened().manage(request)

    def _client(self, request: web.Request) -> str:
        """Identifies the client by the proxy's header or by its address, because all clients have
        the same token.
        """
        named = (
            request.headers.get(self._limits.client_header) if self._limits.client_header else None
        )
        return named or request.remote or ""

    def _opened(self) -> Behind:
        if self._behind is None:
            raise UnavailableError(f"not ready: {self.obstacle}; try again in a few seconds")
        return self._behind
