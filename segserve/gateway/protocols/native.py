"""The native request that a translator makes, and the errors of other protocols."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...client.response import ClientError, HttpResponse, ResponseError, raise_for_error
from ...engines import EngineRequest, EngineResponse
from ...engines.errors import FrontendError
from ...runtime.errors import BadOptionError, BadRequestError, InternalError, SegserveError
from ...runtime.request import OPTION_HEADER_PREFIX
from ..responses import json_response

_Model = TypeVar("_Model", bound=BaseModel)


def parsed_as(kind: type[_Model], document: object) -> _Model:
    """Raises BadRequestError: the document is not of this kind."""
    try:
        return kind.model_validate(document, strict=True)
    except ValidationError as error:
        [detail, *_] = error.errors()
        place = ".".join(map(str, detail["loc"])) or "the request"
        got = detail["input"]
        shown = f", got {got!r:.80}" if isinstance(got, str | int | float) else ""
        raise BadRequestError(f"{place}: {detail['msg']}{shown}") from error


def native_request(
    model: str, version: str | None, image: bytes, options: Mapping[str, object], accept: str
) -> EngineRequest:
    """A request to segment an image. Raises BadOptionError: an option cannot be a header."""
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
    """The native response. Raises ResponseError: it is an error response."""
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
    native = HttpResponse(response.status, "the request failed", response.body, headers)
    raise_for_error(native)
    return native


def status_and_message(error: Exception) -> tuple[int, str]:
    """The HTTP status and the message of an error; other errors are raised again."""
    match error:
        case ResponseError():
            return error.status, error.message
        case SegserveError() | FrontendError():
            return error.status, str(error)
        case ClientError():
            return InternalError.status, str(error)
    raise error


def plain_route(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET"
) -> Route:
    """A route whose errors are `{"error": "message"}`, the form of both protocols."""

    async def safe(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            status, message = status_and_message(error)
            return json_response({"error": message}, status)

    return Route(path, safe, methods=[method])
