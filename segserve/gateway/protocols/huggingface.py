"""Hugging Face's image segmentation, `[{"label", "score", "mask"}]`."""

import asyncio
import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...client.response import HttpResponse, read_segmentation
from ...runtime.errors import BadBase64Error, BadJSONError, BadOptionError
from ...schema.protocols import HuggingFaceRequest
from ...schema.request import MediaType
from ..responses import json_response
from .native import checked, native_request, parsed_as, plain_route

if TYPE_CHECKING:
    from ..app import Gateway


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
        native = checked(await gateway.predict(request, forwarded))
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
    if parameters:
        unknown = ", ".join(f"{name!r:.40}" for name in list(parameters)[:8])
        raise BadOptionError(
            f"parameters: {unknown} have no meaning for semantic segmentation; there are threshold "
            "and subtask"
        )
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
