"""The door: HTTP in front of TorchServe, with tokens that last, readiness that is true, and an end that loses nothing.

TorchServe's own tokens change at every start, its `/ping` answers 200 while models load, its queue serves whoever was
first, however much that is, and at SIGTERM it drops the requests that it has. The door knows nothing of images: it
passes requests on as they come.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple, Self

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..runtime.errors import InternalError, SegserveError, TooLargeError, UnavailableError
from ..server.refusals import RefusalError, unknown_method, unknown_path
from .arriving import Body, too_large
from .failures import raise_for_failure
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .tokens import TokenFile
from .turns import Turns

logger = logging.getLogger("segserve.door")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_RETRY_AFTER_S = 2
_CONNECT_TIMEOUT_S = 10
_METRICS_TIMEOUT_S = 5  # Prometheus gives a scrape 10
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "expect", "host", "authorization"}
)
_TELLING_NOTHING = frozenset({"/ping", "/metrics"})  # asked every few seconds
_SENDER_GONE = 499  # as nginx says it, in the log alone
_TURN = web.RequestKey("turn", AsyncExitStack)  # of a request, which ends with its answer
_OWN_HEADERS = {hdrs.SERVER: "segserve", "X-Content-Type-Options": "nosniff"}  # aiohttp's would tell versions


class Place(NamedTuple):
    """An address of TorchServe's and the token that opens it; None where it asks for none."""

    url: str
    token: str | None


class TorchServePlaces(NamedTuple):
    """What stands behind the door."""

    inference: Place
    management: Place
    metrics: Place


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
        self._places: TorchServePlaces | None = None
        self._session: aiohttp.ClientSession | None = None
        self.obstacle: str | None = "the model is being loaded"
        """Why requests had better go elsewhere; None where a worker is ready."""
        self._metrics = Metrics(ready=lambda: self.obstacle is None)
        self.closing = False
        """Whether connections end with the answers that they wait for."""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)  # what waits, waits in TorchServe's queue, which has a limit
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def open(self, places: TorchServePlaces) -> None:
        """From now on requests are passed on."""
        self._places = places
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
        except RefusalError as refusal:
            response = _refusal(refusal)
        except web.HTTPNotFound:
            response = _refusal(unknown_path())
        except web.HTTPMethodNotAllowed:
            response = _refusal(unknown_method())
        except SegserveError as error:
            response = _refused(error)
        except Exception:
            logger.exception("a request failed")
            response = _refused(InternalError("the server failed at this request; its log says why"))
        response.headers.update(_OWN_HEADERS)
        if self.closing:
            response.force_close()
        await self._send(request, response)
        status = response.status if request.transport is not None else _SENDER_GONE
        if request.match_info.handler == self._predict:
            self._metrics.count_answer(status)
        if request.path not in _TELLING_NOTHING:
            _log(request, response, status, time.perf_counter() - began)
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
        return await self._pass_on_in_turn(request, self._behind().inference)

    async def _describe(self, request: web.Request) -> web.Response:
        """In turn as well: with `customized=true` it waits in the queue of the images."""
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._pass_on_in_turn(request, self._behind().management)

    async def _pass_on_in_turn(self, request: web.Request, place: Place) -> web.Response:
        with self._metrics.waiting():
            await request[_TURN].enter_async_context(self._turns.turn(self._client(request)))
        if request.transport is None:  # its sender left while it waited: nobody computes for nobody
            return web.Response(status=_SENDER_GONE)
        answer = await self._pass_on(request, place)
        assert isinstance(answer.body, bytes)  # noqa: S101 - tells mypy
        raise_for_failure(answer.status, answer.body)
        return answer

    async def _tell_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=await self._torchserve_metrics() + self._metrics.exposed(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE}
        )

    async def _torchserve_metrics(self) -> bytes:
        """As lines of text, to which more can be added; none where TorchServe does not answer."""
        if self._places is None:
            return b""
        assert self._session is not None  # noqa: S101 - tells mypy
        try:
            async with self._session.get(
                f"{self._places.metrics.url}/metrics",
                headers={hdrs.ACCEPT: "text/plain", hdrs.ACCEPT_ENCODING: "identity"},
                timeout=aiohttp.ClientTimeout(total=_METRICS_TIMEOUT_S),
                raise_for_status=True,
            ) as answer:
                return (await answer.read()).rstrip() + b"\n"
        except (aiohttp.ClientError, TimeoutError):  # segserve_door_ready says so
            return b""

    async def _manage(self, request: web.Request) -> web.Response:
        assert self._management_token is not None  # noqa: S101 - tells mypy
        self._management_token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._pass_on(request, self._behind().management)

    def _client(self, request: web.Request) -> str:
        """Who asks, as far as can be told: all have the same token."""
        named = request.headers.get(self._limits.client_header) if self._limits.client_header else None
        return named or request.remote or ""

    def _behind(self) -> TorchServePlaces:
        if self._places is None:
            raise UnavailableError(f"not ready: {self.obstacle}; try again in a few seconds")
        return self._places

    async def _pass_on(self, request: web.Request, place: Place) -> web.Response:
        """TorchServe's answer to the request. It streams in; the answer, which has a limit, is whole when it leaves."""
        assert self._session is not None  # noqa: S101 - tells mypy
        if (request.content_length or 0) > self._limits.request_bytes:
            raise too_large(self._limits.request_bytes)
        headers = _end_to_end(request.headers)
        if place.token:
            headers[hdrs.AUTHORIZATION] = f"Bearer {place.token}"
        url = URL(f"{place.url}{request.rel_url.raw_path_qs}", encoded=True)
        body = Body(request.content, max_bytes=self._limits.request_bytes, timeout_s=self._limits.request_s)
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body if request.body_exists else None, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            if body.error is not None:
                raise body.error from error
            raise UnavailableError("the server does not answer just now; try again in a few seconds") from error
        if answer.status == TooLargeError.status and not content:  # TorchServe's own 413 says nothing
            raise too_large(self._limits.request_bytes)
        return web.Response(body=content, status=answer.status, headers=_end_to_end(answer.headers))


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Without those that concern one connection alone (RFC 9110, 7.6.1), and without the token."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)


def _refusal(refusal: RefusalError) -> web.Response:
    return web.Response(body=refusal.body, status=refusal.status, content_type="application/json")


def _refused(error: SegserveError) -> web.Response:
    headers = {hdrs.RETRY_AFTER: str(_RETRY_AFTER_S)} if isinstance(error, UnavailableError) else None
    return web.Response(
        text=json.dumps(error.as_document()), status=error.status, headers=headers, content_type="application/json"
    )


def _log(request: web.Request, response: web.StreamResponse, status: int, seconds: float) -> None:
    fields = {
        "method": request.method,
        "path": request.path,
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "request_bytes": request.content_length,
        "response_bytes": response.content_length,
        "client": request.remote,
        "traceparent": request.headers.get("traceparent"),
    }
    told = {name: value for name, value in fields.items() if value is not None}
    logger.info("%s %s %s", request.method, request.path, response.status, extra={"fields": told})
