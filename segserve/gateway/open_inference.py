"""The Open Inference Protocol v2 over REST, with its binary extension.

A request has one input, `image`: an encoded image as BYTES (1), or RGB pixels as UINT8 (1, H, W, 3)
or (H, W, 3). The output `label_map` is UINT8 (1, H, W); `confidence`, UINT8 (1, H, W), is 255 times
the top probability of each pixel. Native options are parameters of the request.
"""

import asyncio
import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from ..client.response import HttpResponse, read_segmentation
from ..engines import EngineRequest
from ..runtime.errors import BadRequestError, TooLargeError, UnavailableError
from ..schema.request import MediaType
from .http_server import json_response
from .protocols import Parameters, checked, native_request, parsed_as, plain_route

if TYPE_CHECKING:
    from .app import Gateway

_JSON_LENGTH = "inference-header-content-length"
_LENGTH_BYTES = 4  # before an element of a BYTES tensor
_BINARY_OUTPUT = "binary_data_output"
_INPUT, _LABEL_MAP, _CONFIDENCE = "image", "label_map", "confidence"
_OUTPUTS = (_LABEL_MAP, _CONFIDENCE)
_READY = "READY"

# Of a JSON request: RGB pixels of 1.3 megapixels.
_MOST_VALUES = 4_000_000
_MOST_DIGITS = 18  # of a number of bytes

Json = dict[str, Any]


class InferTensor(BaseModel):
    """An image: as base64 (`BYTES`), or RGB pixels, flat or nested (`UINT8`)."""

    name: Literal["image"]
    datatype: Literal["BYTES", "UINT8"]
    shape: Annotated[
        list[int], Field(description="[1] for BYTES; [1, H, W, 3] or [H, W, 3] for UINT8.")
    ]
    data: Annotated[
        Any,
        WithJsonSchema({"type": "array", "items": {}}),
        Field(description="Missing in the binary extension, with binary_data_size."),
    ] = []
    parameters: Parameters = {}


class InferOutput(BaseModel):
    """A requested output."""

    name: Literal["label_map", "confidence"]
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """A request of the Open Inference Protocol v2."""

    id: str | None = None
    inputs: Annotated[list[InferTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[
        list[InferOutput], BeforeValidator(lambda value: value or [{"name": "label_map"}])
    ] = Field([], validate_default=True)
    parameters: Annotated[
        Parameters, Field(description="Native options, and binary_data_output.")
    ] = {}


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class InferResponse(BaseModel):
    """A response of the Open Inference Protocol v2. The shapes are [1, H, W]."""

    model_name: str
    model_version: str
    outputs: Annotated[list[TensorMetadata], Field(min_length=1)]


class ModelMetadata(BaseModel):
    """A model, as the Open Inference Protocol v2 describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def read_infer_request(body: bytes, json_length: str | None) -> tuple[InferRequest, bytes]:
    """Parses the body of `POST /v2/models/{model}/infer`. Returns its image, encoded, too.

    `json_length` is the header Inference-Header-Content-Length: the bytes of JSON before the binary
    tensor. Raises BadRequestError: the request is not one of the protocol, or not for this model.
    """
    head_bytes = len(body) if json_length is None else _count(json_length, "the header's length")
    if head_bytes > len(body):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {head_bytes}, the body has {len(body)} bytes"
        )
    check_values(body.count(b",", 0, head_bytes))
    try:
        parsed = parsed_as(InferRequest, orjson.loads(body[:head_bytes]))
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not JSON: {error}") from error
    return parsed, _image(parsed.inputs[0], body[head_bytes:])


def check_values(count: int) -> None:
    """Raises TooLargeError. Python's numbers take many times the memory of binary data."""
    if count > _MOST_VALUES:
        raise TooLargeError(
            f"the request holds {count} values, the limit is {_MOST_VALUES}; send the tensor as "
            "binary data"
        )


def _image(tensor: InferTensor, binary: bytes) -> bytes:
    size = tensor.parameters.get("binary_data_size")
    if (0 if size is None else _count(size, "binary_data_size")) != len(binary):
        raise BadRequestError(
            f"binary_data_size is {size}, and {len(binary)} bytes follow the JSON"
        )
    data = binary if size is not None else tensor.data
    read = image_of_bytes if tensor.datatype == "BYTES" else image_of_pixels
    return read(data, tensor.shape)


def image_of_bytes(data: object, shape: Sequence[int]) -> bytes:
    """The image of a BYTES tensor: base64 in JSON, or binary with its length before it."""
    if any(side != 1 for side in shape):
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
    except ValueError as error:
        raise BadRequestError(f"data: the image is not base64: {error}") from error


def image_of_pixels(data: object, shape: list[int]) -> bytes:
    """An encoded image from a UINT8 tensor, (1, H, W, 3) or (H, W, 3), RGB."""
    batch, image = shape[:-3], shape[-3:]
    if batch not in ([], [1]) or len(image) != 3 or image[-1] != 3 or min(image) < 1:
        raise BadRequestError(f"shape: expected [1, H, W, 3] or [H, W, 3], got {shape!r:.80}")
    try:
        pixels = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else _as_bytes(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequestError("data: expected numbers from 0 to 255, flat or nested") from error
    if pixels.size != math.prod(shape):
        raise BadRequestError(
            f"data: shape {shape} has {math.prod(shape)} values, got {pixels.size}"
        )
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(image)).save(file, "BMP")  # lossless, and fastest
    return file.getvalue()


def _as_bytes(data: object) -> NDArray[np.uint8]:
    values = np.array(data)
    if values.dtype.kind != "i" or values.min() < 0 or values.max() > np.iinfo(np.uint8).max:
        raise ValueError
    return values.astype(np.uint8)


def _count(value: object, name: str) -> int:
    text = str(value)
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    if isinstance(value, bool) or not is_number:
        raise BadRequestError(f"{name}: expected a number of bytes, got {value!r:.80}")
    return int(text)


def infer_native(
    parsed: InferRequest, image: bytes, model: str, version: str | None
) -> EngineRequest:
    """The native request. The confidences are part of JSON alone."""
    options = {name: value for name, value in parsed.parameters.items() if name != _BINARY_OUTPUT}
    if all(output.name == _LABEL_MAP for output in parsed.outputs):
        return native_request(model, version, image, options, MediaType.NPY)
    own = {"mask": "png", "confidence": True}
    return native_request(model, version, image, {**options, **own}, MediaType.JSON)


def tensors_of(response: HttpResponse, outputs: Sequence[InferOutput]) -> list[NDArray[np.uint8]]:
    """The requested outputs, uint8 (1, H, W), from the native response."""
    if all(output.name == _LABEL_MAP for output in outputs):
        label_map = np.load(io.BytesIO(response.body), allow_pickle=False)
        return [label_map[None] for _ in outputs]
    segmentation = read_segmentation(response, b"")
    maps = {_LABEL_MAP: segmentation.label_map, _CONFIDENCE: segmentation.confidence_map}
    return [np.asarray(maps[output.name])[None] for output in outputs]


def _infer_response(
    parsed: InferRequest, model: str, version: str, native: HttpResponse
) -> Response:
    entries, blobs, tensors = [], [], tensors_of(native, parsed.outputs)
    all_binary = parsed.parameters.get(_BINARY_OUTPUT)
    for output, tensor in zip(parsed.outputs, tensors, strict=True):
        entry: Json = {"name": output.name, "shape": list(tensor.shape), "datatype": "UINT8"}
        if output.parameters.get("binary_data", all_binary) is True:
            blobs.append(tensor.tobytes())
            entry["parameters"] = {"binary_data_size": tensor.size}
        else:
            entry["data"] = tensor.ravel()
        entries.append(entry)
    document = {"model_name": model, "model_version": version, "outputs": entries}
    if parsed.id is not None:
        document["id"] = parsed.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *blobs]),
        media_type="application/octet-stream",
        headers={_JSON_LENGTH: str(len(head))},
    )


class OpenInference:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        routes = [
            plain_route("/v2", self._server),
            plain_route("/v2/health/live", self._live),
            plain_route("/v2/health/ready", self._ready),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                plain_route(model, self._model),
                plain_route(f"{model}/ready", self._model_ready),
                plain_route(f"{model}/infer", self._infer, "POST"),
            ]
        return routes

    async def _server(self, _: Request) -> Response:
        own = {"name": "segserve", "version": __version__, "extensions": ["binary_tensor_data"]}
        return json_response(own)

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        self._gateway.check_ready()
        return json_response({"ready": True})

    async def _model(self, request: Request) -> Response:
        described = await self._described(request)
        return json_response(model_metadata(described["modelName"], described["modelVersion"]))

    async def _model_ready(self, request: Request) -> Response:
        described = await self._described(request)
        if not has_ready_worker(described):
            raise UnavailableError("the model has no worker that is ready")
        return json_response({"name": described["modelName"], "ready": True})

    async def _infer(self, request: Request) -> Response:
        body = await self._gateway.read_body(request)
        model, version = request.path_params["model"], request.path_params.get("version")
        json_length = request.headers.get(_JSON_LENGTH)
        parsed, image = await asyncio.to_thread(read_infer_request, body, json_length)
        forwarded = infer_native(parsed, image, model, version)
        native = checked(await self._gateway.predict(forwarded, request))
        return await asyncio.to_thread(_infer_response, parsed, model, version or "", native)

    async def _described(self, request: Request) -> Mapping[str, Any]:
        version = request.path_params.get("version")
        model = request.path_params["model"] + (f"/{version}" if version else "")
        self._gateway.check_token(request.headers.get("authorization"))
        return await self._gateway.description(model)


def has_ready_worker(described: Mapping[str, Any]) -> bool:
    return any(worker["status"] == _READY for worker in described["workers"])


def model_metadata(name: str, version: str) -> Json:
    return {
        "name": name,
        "versions": [version],
        "platform": "segserve",
        "inputs": [{"name": _INPUT, "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": name, "datatype": "UINT8", "shape": [1, -1, -1]} for name in _OUTPUTS],
    }
