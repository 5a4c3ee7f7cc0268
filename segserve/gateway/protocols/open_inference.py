"""The Open Inference Protocol v2 over REST, with its binary extension, which KServe, Triton and
others speak.

A request has one input, `image`: an encoded image as BYTES (1), or RGB pixels as UINT8 (1, H, W, 3)
or (H, W, 3). The output `label_map` is UINT8 (1, H, W); `confidence`, UINT8 (1, H, W), is 255 times
the top probability of each pixel. Native options are parameters of the request.
"""

import asyncio
import base64
import binascii
import io
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import __version__
from ...client.response import HttpResponse, read_segmentation
from ...engines.engine import EngineRequest
from ...runtime.errors import BadRequestError, TooLargeError, UnavailableError
from ...schema.request import MediaType
from ..responses import json_response
from .native import Backend, checked, native_request, with_plain_errors

_JSON_LENGTH = "inference-header-content-length"
_LENGTH_BYTES = 4  # before an element of a BYTES tensor
_BINARY_OUTPUT = "binary_data_output"
_INPUT, _LABEL_MAP, _CONFIDENCE = "image", "label_map", "confidence"
_OUTPUTS = (_LABEL_MAP, _CONFIDENCE)
_READY = "READY"

# Of a JSON request: RGB pixels of 1.3 megapixels.
_MOST_VALUES = 4_000_000

Json = dict[str, Any]


class Output(NamedTuple):
    """A requested output."""

    name: str
    is_binary: bool


class ImageQuery(NamedTuple):
    """A parsed request.

    Attributes:
        image: an encoded image.
        parameters: native options.
    """

    request_id: str | None
    image: bytes
    parameters: Mapping[str, object]
    outputs: Sequence[Output]


def read_infer_request(body: bytes, json_length: str | None) -> ImageQuery:
    """Parses the body of `POST /v2/models/{model}/infer`.

    Args:
        json_length: the header Inference-Header-Content-Length: the bytes of JSON before the binary
            tensors; None if there are none.

    Raises:
        BadRequestError: the request is not one of the protocol, or not one for this model.
    """
    head_bytes = len(body) if json_length is None else _count(json_length, "the header's length")
    if head_bytes > len(body):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {head_bytes}, the body has {len(body)} bytes"
        )
    values = body.count(b",", 0, head_bytes)
    if values > _MOST_VALUES:  # Python's numbers take many times the memory
        raise TooLargeError(
            f"the JSON holds {values} values, the limit is {_MOST_VALUES}; send the tensor as "
            "binary data"
        )
    try:
        document = orjson.loads(body[:head_bytes])
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not JSON: {error}") from error
    document = _mapping(document, "the request")
    parameters = _mapping(document.get("parameters") or {}, "parameters")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequestError("id: expected a string")
    return ImageQuery(
        request_id,
        _image(document.get("inputs"), body[head_bytes:]),
        {name: value for name, value in parameters.items() if name != _BINARY_OUTPUT},
        _requested(document.get("outputs"), parameters.get(_BINARY_OUTPUT) is True),
    )


def _image(inputs: object, binary: bytes) -> bytes:
    listed = inputs if isinstance(inputs, list) else []
    names = [_mapping(each, "an input").get("name") for each in listed]
    tensor = single_input(listed, names)
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    parameters = _mapping(tensor.get("parameters") or {}, "parameters of the input")
    size = parameters.get("binary_data_size")
    if size is not None:
        size_bytes = _count(size, "binary_data_size")
        if size_bytes != len(binary):
            raise BadRequestError(
                f"binary_data_size is {size_bytes}, and {len(binary)} bytes follow the JSON"
            )
    elif binary:
        raise BadRequestError("bytes follow the JSON, and the input has no binary_data_size")
    data = binary if size is not None else tensor.get("data")
    match datatype:
        case "BYTES":
            return image_of_bytes(data, shape)
        case "UINT8":
            return image_of_pixels(data, shape)
    raise BadRequestError(
        f"datatype: expected BYTES for an encoded image or UINT8 for pixels, got {datatype!r:.80}"
    )


def single_input(inputs: Sequence[Any], names: Sequence[object]) -> Any:  # noqa: ANN401
    """The input of a request, JSON or a message.

    Raises:
        BadRequestError: there are others, or it has another name.
    """
    if len(inputs) != 1 or names[0] != _INPUT:
        found = ", ".join(f"{name!r:.40}" for name in names[:8]) or "none"
        raise BadRequestError(f"inputs: expected one tensor, {_INPUT!r}, got {found}")
    return inputs[0]


def output_name(name: object) -> str:
    """Checks the name of a requested output.

    Raises:
        BadRequestError: there is no such output.
    """
    if name not in _OUTPUTS:
        raise BadRequestError(f"outputs: expected {' or '.join(_OUTPUTS)}, got {name!r:.80}")
    return str(name)


def image_of_bytes(data: object, shape: object) -> bytes:
    """An encoded image from a BYTES tensor of one element: base64 in JSON, or binary with its
    length before it.
    """
    if not _is_shape(shape) or math.prod(shape) != 1:
        raise BadRequestError(f"shape: expected [1], one image a request, got {shape!r:.80}")
    if isinstance(data, bytes):
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        if length != len(data) - _LENGTH_BYTES:
            raise BadRequestError(
                f"BYTES: the first 4 bytes say {length}, and {len(data) - 4} bytes follow"
            )
        return data[_LENGTH_BYTES:]
    while isinstance(data, list) and len(data) == 1:
        [data] = data
    if not isinstance(data, str):
        raise BadRequestError("data: expected a list of one string, the image as base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"data: the image is not base64: {error}") from error


def image_of_pixels(data: object, shape: object) -> bytes:
    """An encoded image from a UINT8 tensor, (1, H, W, 3) or (H, W, 3), RGB."""
    if not _is_shape(shape) or shape[-1:] != [3] or len(shape) not in (3, 4):
        raise BadRequestError(f"shape: expected [1, H, W, 3] or [H, W, 3], got {shape!r:.80}")
    if len(shape) == 4 and shape[0] != 1:
        raise BadRequestError(f"shape: expected one image a request, got {shape[0]}")
    try:
        pixels = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else _as_bytes(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequestError("data: expected numbers from 0 to 255, flat or nested") from error
    if pixels.size != math.prod(shape):
        raise BadRequestError(
            f"data: shape {shape} has {math.prod(shape)} values, got {pixels.size}"
        )
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(shape[-3:])).save(file, "BMP")  # lossless, and fastest
    return file.getvalue()


def _as_bytes(data: object) -> NDArray[np.uint8]:
    values = np.array(data)
    if values.dtype.kind != "i" or values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
        raise ValueError
    return values.astype(np.uint8)


def _requested(outputs: object, all_binary: bool) -> list[Output]:
    """The requested outputs; by default the label map."""
    if not outputs:
        return [Output(_LABEL_MAP, all_binary)]
    if not isinstance(outputs, list):
        raise BadRequestError("outputs: expected a list")
    requested = []
    for entry in outputs:
        output = _mapping(entry, "an output")
        name = output_name(output.get("name"))
        parameters = _mapping(output.get("parameters") or {}, "parameters of an output")
        is_binary = parameters.get("binary_data", all_binary) is True
        requested.append(Output(name, is_binary))
    return requested


def _is_shape(shape: object) -> TypeGuard[list[int]]:
    return isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)


def _count(value: object, name: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdecimal():
        raise BadRequestError(f"{name}: expected a number of bytes, got {value!r:.80}")
    return int(text)


def _mapping(value: object, name: str) -> Json:
    if not isinstance(value, dict):
        raise BadRequestError(f"{name}: expected a JSON object")
    return value


def infer_native(parsed: ImageQuery, model: str, version: str | None) -> EngineRequest:
    """The native request. The confidences are part of JSON alone."""
    with_confidence = any(output.name == _CONFIDENCE for output in parsed.outputs)
    own = {"mask": "png", "confidence": True} if with_confidence else {}
    accept = MediaType.JSON if with_confidence else MediaType.NPY
    return native_request(model, version, parsed.image, {**parsed.parameters, **own}, accept)


def tensors_of(response: HttpResponse, outputs: Sequence[Output]) -> list[NDArray[np.uint8]]:
    """The requested outputs, uint8 (1, H, W), from the native response."""
    if all(output.name == _LABEL_MAP for output in outputs):
        label_map = np.load(io.BytesIO(response.body), allow_pickle=False)
        return [label_map[None] for _ in outputs]
    segmentation = read_segmentation(response, b"")
    maps = {_LABEL_MAP: segmentation.label_map, _CONFIDENCE: segmentation.confidence_map}
    return [np.asarray(maps[output.name])[None] for output in outputs]


def _infer_response(
    parsed: ImageQuery, model: str, version: str, tensors: Sequence[NDArray[np.uint8]]
) -> Response:
    entries, blobs = [], []
    for output, tensor in zip(parsed.outputs, tensors, strict=True):
        entry: Json = {"name": output.name, "shape": list(tensor.shape), "datatype": "UINT8"}
        if output.is_binary:
            blobs.append(tensor.tobytes())
            entry["parameters"] = {"binary_data_size": tensor.size}
        else:
            entry["data"] = tensor.ravel()
        entries.append(entry)
    document = {"model_name": model, "model_version": version, "outputs": entries}
    if parsed.request_id is not None:
        document["id"] = parsed.request_id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *blobs]),
        media_type="application/octet-stream",
        headers={_JSON_LENGTH: str(len(head))},
    )


def _route(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET"
) -> Route:
    return Route(path, with_plain_errors(endpoint), methods=[method])


class OpenInference:
    """The endpoints of the protocol."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        routes = [
            _route("/v2", self._server),
            _route("/v2/health/live", self._live),
            _route("/v2/health/ready", self._ready),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                _route(model, self._model),
                _route(f"{model}/ready", self._model_ready),
                _route(f"{model}/infer", self._infer, "POST"),
            ]
        return routes

    async def _server(self, _: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return json_response({"name": "segserve", "version": __version__, "extensions": extensions})

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        if self._backend.obstacle is not None:
            raise UnavailableError(f"not ready: {self._backend.obstacle}")
        return json_response({"ready": True})

    async def _model(self, request: Request) -> Response:
        described = await self._described(request)
        return json_response(model_metadata(described["modelName"], described["modelVersion"]))

    async def _model_ready(self, request: Request) -> Response:
        described = await self._described(request)
        if not ready_worker(described):
            raise UnavailableError("the model has no worker that is ready")
        return json_response({"name": described["modelName"], "ready": True})

    async def _infer(self, request: Request) -> Response:
        body = await self._backend.read_body(request)
        model, version = request.path_params["model"], request.path_params.get("version")
        json_length = request.headers.get(_JSON_LENGTH)
        parsed = await asyncio.to_thread(read_infer_request, body, json_length)
        forwarded = infer_native(parsed, model, version)
        native = checked(await self._backend.predict(request, forwarded))
        tensors = await asyncio.to_thread(tensors_of, native, parsed.outputs)
        return _infer_response(parsed, model, version or "", tensors)

    async def _described(self, request: Request) -> Mapping[str, Any]:
        version = request.path_params.get("version")
        model = request.path_params["model"] + (f"/{version}" if version else "")
        return await self._backend.describe_model(request, model)


def ready_worker(described: Mapping[str, Any]) -> bool:
    """Whether a model has a worker that is ready."""
    return any(worker["status"] == _READY for worker in described["workers"])


def model_metadata(name: str, version: str) -> Json:
    """The metadata of a model, as the protocol has it."""
    return {
        "name": name,
        "versions": [version],
        "platform": "segserve",
        "inputs": [{"name": _INPUT, "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": name, "datatype": "UINT8", "shape": [1, -1, -1]} for name in _OUTPUTS],
    }
