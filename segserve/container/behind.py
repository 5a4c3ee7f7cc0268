"""What stands behind the door: TorchServe, asked in a client's place."""

from typing import NamedTuple

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..runtime.errors import TooLargeError, UnavailableError
from .arriving import Body, too_large
from .failures import raise_for_failure
from .limits import Limits

_CONNECT_TIMEOUT_S = 10
_METRICS_TIMEOUT_S = 5  # Prometheus gives a scrape 10
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "expect", "host", "authorization"}
)


class Place(NamedTuple):
    """An address of TorchServe's and the token that opens it; None where it asks for none."""

    url: str
    token: str | None


class TorchServePlaces(NamedTuple):
    """Its three addresses."""

    inference: Place
    management: Place
    metrics: Place


class Behind:
    """Passes requests on and brings the answers, over connections that are kept; made where an event loop runs."""

    def __init__(self, places: TorchServePlaces, limits: Limits) -> None:
        self._places = places
        self._limits = limits
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)  # what waits, waits in TorchServe's queue, which has a limit
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)

    async def close(self) -> None:
        """Ends the connections."""
        await self._session.close()

    async def predict(self, request: web.Request) -> web.Response:
        """The answer to a request for a prediction.

        Raises:
            SegserveError: the request does not arrive or is too large, or TorchServe itself failed at it.
        """
        return _checked(await self._pass_on(request, self._places.inference))

    async def describe(self, request: web.Request) -> web.Response:
        """A model's description. Raises as `predict` does: with `customized=true` a worker tells it."""
        return _checked(await self._pass_on(request, self._places.management))

    async def manage(self, request: web.Request) -> web.Response:
        """Whatever the management API answers, in its own words.

        Raises:
            SegserveError: the request does not arrive or is too large, or TorchServe does not answer.
        """
        return await self._pass_on(request, self._places.management)

    async def metrics(self) -> bytes:
        """As lines of text, to which more can be added; none where TorchServe does not answer."""
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

    async def _pass_on(self, request: web.Request, place: Place) -> web.Response:
        """TorchServe's answer to the request. It streams in; the answer, which has a limit, is whole when it leaves."""
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


def _checked(answer: web.Response) -> web.Response:
    assert isinstance(answer.body, bytes)  # noqa: S101 - tells mypy
    raise_for_failure(answer.status, answer.body)
    return answer


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Without those that concern one connection alone (RFC 9110, 7.6.1), and without the token."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)
