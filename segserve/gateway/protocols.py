"""Other protocols: their native requests and plain errors, and Hugging Face's image segmentation.

Their models are open: the specifications allow members beside these.
"""

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import numpy as np
import orjson
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..client.response import (
    ClientError,
    HttpResponse,
    ResponseError,
    raise_for_error,
    read_segmentation,
)
from ..engines import EngineRequest, EngineResponse, FrontendError
from ..runtime.errors import (
    BadBase64Error,
    BadJSONError,
    BadOptionError,
    BadRequestError,
    InternalError,
    SegserveError,
)
from ..runtime.request import OPTION_HEADER_PREFIX
from ..schema.request import MediaType
from .http_server import json_response

if TYPE_CHECKING:
    from .app import Gateway

logger = logging.getLogger("segserve.gateway")

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
    """The HTTP status and the message of an error. Only the log has the details of others."""
    match error:
        case ResponseError():
            return error.status, error.message
        case SegserveError() | FrontendError():
            return error.status, str(error)
        case ClientError():
            return InternalError.status, str(error)
    logger.error("a request failed", exc_info=error)
    return InternalError.status, "the server failed at this request; its log says why"


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


class PlainError(BaseModel):
    """The body of an error response of the other protocols."""

    error: Annotated[str, Field(description="What is wrong, what was expected, what to do.")]


Parameters = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]


class HuggingFaceRequest(BaseModel):
    """An image as base64. Of the parameters, `threshold` and `subtask` have a meaning."""

    inputs: str
    parameters: Parameters = {}


class HuggingFaceSegment(BaseModel):
    """A class of the image."""

    label: str
    score: Annotated[float, Field(description="Mean of the top probability of its pixels.")]
    mask: Annotated[str, Field(description="A grey PNG in base64: 255 where the class is.")]


def huggingface_routes(gateway: "Gateway") -> list[Route]:
    """`POST /hf/{model}`: an image, or JSON with `inputs`, the image as base64, and `parameters`.

    The parameters are `threshold`, the lowest score of a class, and `subtask`: `semantic`.
    """

    async def segment(request: Request) -> Response:
        body = await gateway.read_body(request)
        is_json = "json" in request.headers.get("content-type", "")
        image, threshold = _from_json(body) if is_json else (body, 0.0)
        model = request.path_params["model"]
        forwarded = native_request(model, None, image, {"mask": "png"}, MediaType.JSON)
        native = checked(await gateway.predict(forwarded, request))
        return json_response(await asyncio.to_thread(_segments, native, threshold))

    return [plain_route("/hf/{model}", segment, "POST")]


def _from_json(body: bytes) -> tuple[bytes, float]:
    """The image, and the lowest score of a class."""
    try:
        parsed = parsed_as(HuggingFaceRequest, orjson.loads(body))
        image = base64.b64decode(parsed.inputs, validate=True)
    except orjson.JSONDecodeError as error:
        raise BadJSONError(f"the body is not JSON: {error}") from error
    except ValueError as error:
        raise BadBase64Error(f"inputs is not base64: {error}") from error
    return image, _threshold(parsed.parameters)


def _threshold(parameters: dict[str, Any]) -> float:
    if parameters.pop("subtask", "semantic") != "semantic":
        raise BadOptionError("subtask: this model has semantic alone")
    threshold = parameters.pop("threshold", 0)
    for name in parameters:
        raise BadOptionError(f"parameters: unknown {name!r:.40}; there are threshold and subtask")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise BadOptionError("threshold: expected a number from 0 to 1")
    return threshold


def _segments(native: HttpResponse, threshold: float) -> list[dict[str, Any]]:
    segmentation = read_segmentation(native, b"")
    return [
        {
            "label": row.label,
            "score": row.confidence,
            "mask": _mask(segmentation.label_map == row.id),
        }
        for row in segmentation.classes
        if row.confidence >= threshold
    ]


def _mask(has_class: "np.ndarray[Any, np.dtype[np.bool_]]") -> str:
    """A grey PNG in base64: 255 where the class is, else 0."""
    file = io.BytesIO()
    Image.fromarray(has_class.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
