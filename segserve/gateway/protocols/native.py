"""What a translator needs from the gateway, and the native request that it makes."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from ...client.errors import ClientError, ResponseError
from ...client.response import HttpResponse, raise_for_error
from ...engines.engine import EngineRequest, EngineResponse
from ...engines.errors import FrontendError
from ...runtime.errors import BadOptionError, SegserveError
from ...runtime.request import OPTION_HEADER_PREFIX
from ..responses import RETRY_AFTER_S, json_response

_UNAVAILABLE = 503


class Backend(Protocol):
    """The gateway, with its token, its limits and its engine."""

    @property
    def obstacle(self) -> str | None: ...

    async def read_body(self, request: Request) -> bytes:
        """The whole body of a request, after its token is checked."""

    async def predict(self, request: Request, forwarded: EngineRequest) -> EngineResponse:
        """Forwards a native request in a concurrency slot of the client."""

    async def describe_model(self, request: Request, model: str) -> Mapping[str, Any]:
        """The description of a model, with its workers, after the token is checked."""


def native_request(
    model: str, version: str | None, image: bytes, options: Mapping[str, object], accept: str
) -> EngineRequest:
    """A request to segment an image.

    Raises:
        BadOptionError: an option cannot be a header.
    """
    path = f"/predictions/{quote(model, safe='')}"
    if version is not None:
        path += f"/{quote(version, safe='')}"
    headers = {"accept": accept, "content-type": "application/octet-stream"}
    headers |= {"content-length": str(len(image))}
    for name, value in options.items():
        headers[_option_header(name)] = _option_text(name, value)

    async def body() -> AsyncIterator[bytes]:
        yield image

    return EngineRequest(
        method="POST",
        target=path.encode(),
        headers=[(name.encode(), text.encode("latin-1")) for name, text in headers.items()],
        body=body(),
        has_body=True,
    )


def _option_header(name: str) -> str:
    if not name.isidentifier() or not name.isascii():
        raise BadOptionError(f"unknown option {name!r:.40}")
    return f"{OPTION_HEADER_PREFIX}{name.lower()}"


def _option_text(name: str, value: object) -> str:
    """An option as a header. JSON escapes what a header cannot contain."""
    if isinstance(value, bool):
        return str(value).lower()
    if name.lower() == "classes":
        names = value.split(",") if isinstance(value, str) else value
        return json.dumps(names)
    text = str(value)
    if not text.isascii() or not text.isprintable():
        raise BadOptionError(f"option {name!r:.40}: got {text!r:.80}, which is no allowed value")
    return text


def checked(response: EngineResponse) -> HttpResponse:
    """The native response.

    Raises:
        ResponseError: it is an error response.
    """
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
    native = HttpResponse(response.status, "the request failed", response.body, headers)
    raise_for_error(native)
    return native


def with_plain_errors(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Converts errors to `{"error": "message"}`, the form of both protocols."""

    async def safe(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ResponseError as error:
            status, message = error.status, error.message
        except (SegserveError, FrontendError) as error:
            status, message = error.status, str(error)
        except ClientError as error:
            status, message = 500, str(error)
        response = json_response({"error": message}, status)
        if status == _UNAVAILABLE:
            response.headers["retry-after"] = str(RETRY_AFTER_S)
        return response

    return safe
