"""The door: HTTP in front of TorchServe, with tokens that last, readiness that is true, and an end that loses nothing.

TorchServe's own tokens change at every start, its `/ping` answers 200 while models load, its queue serves whoever was
first, however much that is, and at SIGTERM it drops the requests that it has. The door knows nothing of images: it
passes requests on as they come.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

from aiohttp import hdrs, web

from ..runtime.errors import UnavailableError
from .answers import SENDER_GONE, log, refusal_for
from .behind import Behind, TorchServePlaces
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .tokens import TokenFile
from .turns import Turns

logger = logging.getLogger("segserve.door")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TURN = web.RequestKey("turn", AsyncExitStack)  # of a request, which ends with its answer
_OWN_HEADERS = {hdrs.SERVER: "segserve", "X-Content-Type-Options": "nosniff"}  # aiohttp's would tell versions


class Door:
    """Three applications: predictions, metrics, and the management API where there is a token for it.

    Args:
        token: of predictions.
        management_token: of the management API, which has no application where it is None.
    """

    def __init__(self, token: TokenFile, management_token: TokenFile | None, limits: Limits) -> None:
        self._token = token
        self._management_token = management_token
        self._limits = limits
        self._turns = Turns(in_flight=limits.client_in_flight, waiting=limits.client_waiting)
        self._behind: Behind | None = None
        self.obstacle: str | None = "the model is being loaded"
        """Why requests had better go elsewhere; None where a worker is ready."""
        self._metrics = Metrics(ready=lambda: self.obstacle is None)
        self.closing = False
        """Whether connections end with the answers that they wait for."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._behind is not None:
            await self._behind.close()

    def open(self, places: TorchServePlaces) -> None:
        """From now on requests are passed on."""
        self._behind = Behind(places, self._limits)
        self.obstacle = None

    def inference_app(self) -> web.Application:
        """`/predictions`, the description of models, and `/ping`: 200 where a worker is ready, else 503."""
        app = self._app()
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/predictions/{tail:.+}", self._predict)
        app.router.add_get("/models", self._describe)
        app.router.add_get("/models/{tail:.+}", self._describe)
        return app

    def metrics_app(self) -> web.Application:
        """`GET /metrics`, for Prometheus: TorchServe's and the door's own."""
        app = self._app()
        app.router.add_get("/metrics", self._tell_metrics)
        return app

    def management_app(self) -> web.Application | None:
        """Everything that TorchServe's management API has."""
        if self._management_token is None:
            return None
        app = self._app()
        app.router.add_route("*", "/{tail:.*}", self._manage)
        return app

    def _app(self) -> web.Application:
        return web.Application(middlewares=[self._answered])

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every refusal as JSON, every answer logged, every turn held until the answer is out."""
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
        """Answers lie in memory until they are read: whoever does not read is left."""
        try:
            async with asyncio.timeout(self._limits.request_s):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            logger.warning("an answer was not read within %g s", self._limits.request_s)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:  # its sender left
            pass

    async def _ping(self, _: web.Request) -> web.Response:
        if self.obstacle is not None:
            raise UnavailableError(f"not ready: {self.obstacle}")
        return web.json_response({"status": "Healthy"})

    async def _predict(self, request: web.Request) -> web.Response:
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._in_turn(request, self._opened().predict)

    async def _describe(self, request: web.Request) -> web.Response:
        """In turn as well: with `customized=true` it waits in the queue of the images."""
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._in_turn(request, self._opened().describe)

    async def _in_turn(
        self, request: web.Request, pass_on: Callable[[web.Request], Awaitable[web.Response]]
    ) -> web.Response:
        with self._metrics.waiting():
            await request[_TURN].enter_async_context(self._turns.turn(self._client(request)))
        if request.transport is None:  # its sender left while it waited: nobody computes for nobody
            return web.Response(status=SENDER_GONE)
        return await pass_on(request)

    async def _tell_metrics(self, _: web.Request) -> web.Response:
        torchserves = await self._behind.metrics() if self._behind else b""
        return web.Response(body=torchserves + self._metrics.exposed(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def _manage(self, request: web.Request) -> web.Response:
        assert self._management_token is not None  # noqa: S101 - tells mypy
        self._management_token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._opened().manage(request)

    def _client(self, request: web.Request) -> str:
        """Who asks, as far as can be told: all have the same token."""
        named = request.headers.get(self._limits.client_header) if self._limits.client_header else None
        return named or request.remote or ""

    def _opened(self) -> Behind:
        if self._behind is None:
            raise UnavailableError(f"not ready: {self.obstacle}; try again in a few seconds")
        return self._behind
