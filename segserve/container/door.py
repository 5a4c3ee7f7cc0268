"""The door: HTTP in front of TorchServe, with tokens that last, readiness that is true, and an end that loses nothing.

TorchServe's own tokens change at every start, its `/ping` answers 200 while models load, and at SIGTERM it drops the
requests that it has. The door knows nothing of images: it passes requests on as they come.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Self

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..runtime.errors import InternalError, SegserveError, TooLargeError, UnavailableError
from ..server.refusals import RefusalError, unknown_method, unknown_path
from .tokens import TokenFile

logger = logging.getLogger("segserve.door")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_RETRY_AFTER_S = 2
_CONNECT_TIMEOUT_S = 10
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "expect", "host", "authorization"}
)
_TELLING_NOTHING = frozenset({"/ping", "/metrics"})  # asked every few seconds


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
        max_request_bytes: a request of more bytes is refused.
    """

    def __init__(self, token: TokenFile, management_token: TokenFile | None, *, max_request_bytes: int) -> None:
        self._token = token
        self._management_token = management_token
        self._max_request_bytes = max_request_bytes
        self._places: TorchServePlaces | None = None
        self._session: aiohttp.ClientSession | None = None
        self.obstacle: str | None = "the model is being loaded"
        """Why requests had better go elsewhere; None where a worker is ready."""
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
        """`GET /metrics`, for Prometheus."""
        app = self._app()
        app.router.add_get("/metrics", self._metrics)
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
        """Every refusal as JSON, every answer logged."""
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
        if self.closing:
            response.force_close()
        if request.path not in _TELLING_NOTHING:
            _log(request, response, time.perf_counter() - began)
        return response

    async def _ping(self, _: web.Request) -> web.Response:
        if self.obstacle is not None:
            raise UnavailableError(f"not ready: {self.obstacle}")
        return web.json_response({"status": "Healthy"})

    async def _predict(self, request: web.Request) -> web.Response:
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._pass_on(request, self._behind().inference)

    async def _describe(self, request: web.Request) -> web.Response:
        self._token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._pass_on(request, self._behind().management)

    async def _metrics(self, request: web.Request) -> web.Response:
        return await self._pass_on(request, self._behind().metrics)

    async def _manage(self, request: web.Request) -> web.Response:
        assert self._management_token is not None  # noqa: S101 - tells mypy
        self._management_token.check(request.headers.get(hdrs.AUTHORIZATION))
        return await self._pass_on(request, self._behind().management)

    def _behind(self) -> TorchServePlaces:
        if self._places is None:
            raise UnavailableError(f"not ready: {self.obstacle}; try again in a few seconds")
        return self._places

    async def _pass_on(self, request: web.Request, place: Place) -> web.Response:
        """TorchServe's answer to the request. It streams in; the answer, which has a limit, is whole when it leaves."""
        assert self._session is not None  # noqa: S101 - tells mypy
        if (request.content_length or 0) > self._max_request_bytes:
            raise self._too_large()
        headers = _end_to_end(request.headers)
        if place.token:
            headers[hdrs.AUTHORIZATION] = f"Bearer {place.token}"
        url = URL(f"{place.url}{request.rel_url.raw_path_qs}", encoded=True)
        body = request.content if request.body_exists else None
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError("the server does not answer just now; try again in a few seconds") from error
        if answer.status == TooLargeError.status and not content:  # TorchServe's own 413 says nothing
            raise self._too_large()
        return web.Response(body=content, status=answer.status, headers=_end_to_end(answer.headers))

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the request has more bytes than the {self._max_request_bytes} that are taken; send the image smaller, or "
            "as JPEG or PNG"
        )


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


def _log(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    fields = {
        "method": request.method,
        "path": request.path,
        "status": response.status,
        "duration_ms": round(seconds * 1000, 1),
        "request_bytes": request.content_length,
        "response_bytes": response.content_length,
        "client": request.remote,
        "traceparent": request.headers.get("traceparent"),
    }
    told = {name: value for name, value in fields.items() if value is not None}
    logger.info("%s %s %s", request.method, request.path, response.status, extra={"fields": told})
