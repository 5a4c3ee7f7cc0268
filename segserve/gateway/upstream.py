"""The upstream of the gateway: forwards requests to TorchServe."""

from typing import NamedTuple

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..runtime.errors import TooLargeError, UnavailableError
from .body import Body, too_large
from .limits import Limits
from .torchserve_failures import raise_for_failure

_CONNECT_TIMEOUT_S = 10
_METRICS_TIMEOUT_S = 5  # Prometheus allows 10 s for a scrape
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
    }
    | {"upgrade", "expect", "host", "authorization"}
)


class Place(NamedTuple):
    """An endpoint of TorchServe and its token; None if it requires none."""

    url: str
    token: str | None


class TorchServePlaces(NamedTuple):
    """TorchServe's three endpoints."""

    inference: Place
    management: Place
    metrics: Place


class Behind:
    """Forwards requests and returns the responses, over persistent connections. Create it in a
    running event loop.
    """

    def __init__(self, places: TorchServePlaces, limits: Limits) -> None:
        self._places = places
        self._limits = limits
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        connector = aiohttp.TCPConnector(
            limit=0
        )  # requests wait in TorchServe's queue, which has a limit
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def predict(self, request: web.Request) -> web.Response:
        """Forwards a request for a prediction.

        Raises:
            SegserveError: the request does not arrive or is too large, or TorchServe itself failed.
        """
        return _checked(await self._pass_on(request, self._places.inference))

    async def describe(self, request: web.Request) -> web.Response:
        """Forwards a request for a model's description. Raises as `predict`: a worker handles
        `customized=true`.
        """
        return _checked(await self._pass_on(request, self._places.management))

    async def manage(self, request: web.Request) -> web.Response:
        """Forwards a request to the management API. Returns any response of TorchServe unchanged.

        Raises:
            SegserveError: the request does not arrive or is too large, or TorchServe does not
                respond.
        """
        return await self._pass_on(request, self._places.management)

    async def metrics(self) -> bytes:
        """TorchServe's metrics as lines of text, to which more can be added. Empty if TorchServe
        does not respond.
        """
        try:
            async with self._session.get(
                f"{self._places.metrics.url}/metrics",
                headers={hdrs.ACCEPT: "text/plain", hdrs.ACCEPT_ENCODING: "identity"},
                timeout=aiohttp.ClientTimeout(total=_METRICS_TIMEOUT_S),
                raise_for_status=True,
            ) as answer:
                return (await answer.read()).rstrip() + b"\n"
        except (aiohttp.ClientError, TimeoutError):  # the metric segserve_gateway_ready shows this
            return b""

    async def _pass_on(self, request: web.Request, place: Place) -> web.Response:
        """Forwards the request to an endpoint.

        The request is streamed. The response, which has a size limit, is read completely before it
        is returned.
        """
        if (request.content_length or 0) > self._limits.request_bytes:
            raise too_large(self._limits.request_bytes)
        headers = _end_to_end(request.headers)
        if place.token:
            headers[hdrs.AUTHORIZATION] = f"Bearer {place.token}"
        url = URL(f"{place.url}{request.rel_url.raw_path_qs}", encoded=True)
        body = Body(
            request.content, max_bytes=self._limits.request_bytes, timeout_s=self._limits.request_s
        )
        try:
            async with self._session.request(
                request.method,
                url,
                headers=headers,
                data=body if request.body_exists else None,
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            if body.error is not None:
                raise body.error from error
            raise UnavailableError(
                "the server does not answer just now; try again in a few seconds"
            ) from error
        if answer.status == TooLargeError.status and not content:  # TorchServe's own 413 is empty
            raise too_large(self._limits.request_bytes)
        return web.Response(body=content, status=answer.status, headers=_end_to_end(answer.headers))


def _checked(answer: web.Response) -> web.Response:
    assert isinstance(answer.body, bytes)  # noqa: S101 - for mypy
    raise_for_failure(answer.status, answer.body)
    return answer


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers without those of a single connection (RFC 9110, 7.6.1), and without the token."""
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP
    )
