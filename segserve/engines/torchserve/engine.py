"""The engine `torchserve`: a TorchServe of its own, reached over loopback."""

import asyncio
import json
import logging
from typing import NamedTuple

import httpx

from ...runtime.errors import (
    BadRequestError,
    InternalError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from .. import EngineRequest, EngineResponse, Headers
from .config import max_request_bytes
from .process import TorchServe

logger = logging.getLogger("segserve.gateway")

_NO_TIMEOUT = httpx.Timeout(None, connect=10)  # TorchServe has a time limit of its own
_METRICS_TIMEOUT_S = 5  # Prometheus allows 10 s for a scrape
_FRAMING = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length"})
_FORBIDDEN = 403  # with a valid token, TorchServe's status for some paths that it cannot parse
_UNREADABLE = frozenset(
    {"ErrorDataDecoderException", "IllegalArgumentException", "UnsupportedCharsetException"}
    | {"ArrayIndexOutOfBoundsException", "StringIndexOutOfBoundsException"}
)
"""Java's exceptions for invalid paths and forms."""


class Api(NamedTuple):
    """The base URL of one of TorchServe's APIs and its token; None if it requires none."""

    url: str
    token: str | None


class TorchServeClient:
    """Forwards requests over persistent connections. Create it in a running event loop.

    A request's body is streamed; a response, which has a size limit, is read whole.

    Args:
        max_request_bytes: TorchServe's limit, for the message of its empty 413.
    """

    def __init__(
        self, *, inference: Api, management: Api, metrics: Api, max_request_bytes: int
    ) -> None:
        self._inference, self._management, self._metrics = inference, management, metrics
        self._max_request_bytes = max_request_bytes
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            trust_env=False,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def predict(self, request: EngineRequest) -> EngineResponse:
        """Forwards a request for a prediction. Raises as `Engine.predict`."""
        return _checked(await self._forward(request, self._inference))

    async def describe(self, request: EngineRequest) -> EngineResponse:
        """Forwards a request for a description. A worker handles `customized=true`."""
        return _checked(await self._forward(request, self._management))

    async def manage(self, request: EngineRequest) -> EngineResponse:
        """Forwards a request to the management API. Returns any response unchanged."""
        return await self._forward(request, self._management)

    async def metrics(self) -> bytes:
        """TorchServe's metrics as lines of text; empty if it does not respond."""
        try:
            response = await self._client.get(
                f"{self._metrics.url}/metrics",
                headers={"accept": "text/plain", "accept-encoding": "identity"},
                timeout=_METRICS_TIMEOUT_S,
            )
            return response.raise_for_status().content.rstrip() + b"\n"
        except httpx.HTTPError:  # the metric segserve_gateway_ready shows this
            return b""

    async def _forward(self, request: EngineRequest, endpoint: Api) -> EngineResponse:
        headers = [*request.headers]
        if endpoint.token:
            headers.append((b"authorization", f"Bearer {endpoint.token}".encode()))
        forwarded = httpx.Request(
            request.method,
            endpoint.url,
            headers=headers,
            content=request.body if request.has_body else None,
            extensions={"target": request.target, "timeout": _NO_TIMEOUT.as_dict()},
        )
        try:
            response = await self._client.send(forwarded, stream=True)
            try:
                content = b"".join([chunk async for chunk in response.aiter_raw()])
            finally:
                await response.aclose()
        except httpx.LocalProtocolError as error:
            raise BadRequestError(f"the path or a header is not valid HTTP: {error}") from error
        except httpx.TransportError as error:
            raise UnavailableError(
                "the server does not respond at the moment; try again in a few seconds"
            ) from error
        if response.status_code == TooLargeError.status and not content:
            raise TooLargeError(
                f"the request has more than {self._max_request_bytes} bytes, the limit of this "
                "server; send the image smaller, or as JPEG or PNG"
            )
        return EngineResponse(response.status_code, _own_headers(response.headers.raw), content)


class TorchServeEngine(TorchServeClient):
    """See `Engine`."""

    def __init__(self, server: TorchServe) -> None:
        self._server = server
        self.log_path, self.models = server.log_path, server.models
        super().__init__(
            inference=Api(server.inference_url, None),
            management=Api(server.management_url, None),
            metrics=Api(server.metrics_url, None),
            max_request_bytes=max_request_bytes(server.settings),
        )

    async def start(self, timeout_s: float) -> None:
        server = self._server
        await asyncio.to_thread(server.wait_ready, timeout_s)
        self._inference = self._inference._replace(token=server.inference_token)
        self._management = self._management._replace(token=server.management_token)

    async def stop(self) -> None:
        await self.close()
        await asyncio.to_thread(self._server.stop)

    async def obstacle(self) -> str | None:
        return await asyncio.to_thread(self._server.obstacle)


def _own_headers(headers: Headers) -> Headers:
    return [(name.lower(), value) for name, value in headers if name.lower() not in _FRAMING]


def _checked(response: EngineResponse) -> EngineResponse:
    """Raises an error if TorchServe itself failed. The handler's errors have another format, and
    TorchServe's other errors (no such model, a bad token) another status.
    """
    if response.status < InternalError.status and response.status != _FORBIDDEN:
        return response
    kind = _exception_type(response.body)
    match kind:
        case None:
            return response
        case "ServiceUnavailableException":
            raise OverloadedError("the queue is full, or no worker is ready; send it again later")
        case "InternalServerException":  # its status depends on which of its threads is first
            raise UnavailableError("the process that had this request is gone; send it again")
    logger.warning("TorchServe failed at a request: %s", response.body.decode(errors="replace"))
    if kind in _UNREADABLE:
        raise BadRequestError(
            "the path or the form cannot be read; send the image as the body, with a type of its "
            "own such as image/jpeg, or as the part 'data' of a form"
        )
    raise InternalError("the server failed at this request; its log says why")


def _exception_type(content: bytes) -> object:
    """The type of an error in the format of TorchServe's frontend; None for any other content."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document.get("type") if isinstance(document, dict) else None
