"""The engine `torchserve`: a TorchServe of its own, reached over loopback."""

import asyncio
import json
import logging
from collections.abc import AsyncIterable, AsyncIterator
from functools import cached_property
from typing import TYPE_CHECKING

import httpx
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..runtime.errors import (
    BadRequestError,
    InternalError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from . import EngineRequest, EngineResponse
from .config import duplicate_part, is_form, max_request_bytes, too_large
from .torchserve_process import TorchServe

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

logger = logging.getLogger("segserve.gateway")

_NO_TIMEOUT = httpx.Timeout(None, connect=10)  # TorchServe has a time limit of its own
_METRICS_TIMEOUT_S = 5  # Prometheus allows 10 s for a scrape
_FORBIDDEN = 403  # with a valid token, TorchServe's status for some paths that it cannot parse
_UNREADABLE = {  # Java's exceptions for invalid paths and forms
    *("ErrorDataDecoderException", "IllegalArgumentException", "UnsupportedCharsetException"),
    *("ArrayIndexOutOfBoundsException", "StringIndexOutOfBoundsException"),
}


class TorchServeEngine:
    """See `Engine`. Forwards requests over persistent connections; create it in an event loop.

    A request's body is streamed; a response, which has a size limit, is read whole.
    """

    def __init__(self, server: TorchServe) -> None:
        self._server = server
        self.log_path, self.models = server.log_path, server.models
        self._max_request_bytes = max_request_bytes(server.settings)
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            trust_env=False,
        )

    async def start(self, timeout_s: float) -> None:
        await asyncio.to_thread(self._server.wait_ready, timeout_s)

    async def stop(self) -> None:
        await self._client.aclose()
        await asyncio.to_thread(self._server.stop)

    async def not_ready_reason(self) -> str | None:
        return await asyncio.to_thread(self._server.not_ready_reason)

    async def predict(self, request: EngineRequest) -> EngineResponse:
        content_type = dict(request.headers).get(b"content-type", b"").decode("latin-1")
        if is_form(content_type):
            request = request._replace(body=distinct_parts(request.body, content_type))
        url = self._server.inference_url
        return _checked(await self._forward(request, url, self._inference_token))

    async def describe(self, request: EngineRequest) -> EngineResponse:
        return _checked(await self.manage(request))

    async def manage(self, request: EngineRequest) -> EngineResponse:
        """Returns any response unchanged."""
        return await self._forward(request, self._server.management_url, self._management_token)

    async def metrics(self) -> bytes:
        try:
            response = await self._client.get(
                f"{self._server.metrics_url}/metrics",
                headers={"accept": "text/plain", "accept-encoding": "identity"},
                timeout=_METRICS_TIMEOUT_S,
            )
            return response.raise_for_status().content.rstrip() + b"\n"
        except httpx.HTTPError:  # the metric segserve_gateway_ready shows this
            return b""

    @cached_property
    def _inference_token(self) -> str | None:
        return self._server.inference_token

    @cached_property
    def _management_token(self) -> str | None:
        return self._server.management_token

    async def _forward(self, request: EngineRequest, url: str, token: str | None) -> EngineResponse:
        headers = [*request.headers]
        if token:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        forwarded = httpx.Request(
            request.method,
            url,
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
            raise too_large(self._max_request_bytes)
        return EngineResponse(response.status_code, response.headers.raw, content)


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


async def distinct_parts(body: AsyncIterable[bytes], content_type: str) -> AsyncIterator[bytes]:
    """Yields a form's body unchanged. TorchServe itself would take any of two parts.

    Raises:
        BadRequestError: a second part has the name of an earlier one.
    """
    parser = _parser_of_names(content_type)
    async for chunk in body:
        try:
            if parser is not None:
                parser.write(chunk)
        except FormParserError:
            parser = None
        yield chunk


def _parser_of_names(content_type: str) -> MultipartParser | None:
    """A parser that rejects the second part of a name; None for a form without a valid boundary."""
    seen: set[bytes] = set()
    field, value = bytearray(), bytearray()

    def on_header_end() -> None:
        if field.lower() == b"content-disposition":
            name = parse_options_header(bytes(value))[1].get(b"name", b"")
            if name in seen:
                raise duplicate_part()
            seen.add(name)
        field.clear()
        value.clear()

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    callbacks: MultipartCallbacks = {
        "on_header_field": lambda data, start, end: field.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": on_header_end,
    }
    try:
        return MultipartParser(boundary, callbacks)
    except FormParserError:
        return None
