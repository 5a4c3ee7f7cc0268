"""The OpenAPI 3.1 document of the HTTP contract, generated from its models.

`python -m segserve.gateway.openapi [FOLDER]` writes it and the JSON Schema of responses to `docs/`.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field, JsonValue, PositiveInt
from pydantic.json_schema import models_json_schema

from .. import __version__
from ..runtime.decode.opening import FORMATS
from ..runtime.errors import error_classes
from ..runtime.files import write_whole
from ..runtime.record import ModelRecord
from ..schema import Base64, Strict
from ..schema.request import MediaType, Options
from ..schema.response import ErrorBody, SegmentationResponse, TorchServeError
from .open_inference import InferRequest, InferResponse, ModelMetadata
from .protocols import HuggingFaceRequest, HuggingFaceSegment, PlainError

Json = dict[str, Any]

_INFERENCE = {"url": "http://127.0.0.1:8080", "description": "inference"}
_MANAGEMENT = {"url": "http://127.0.0.1:8081", "description": "management"}
_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}


class JsonRequest(Options):
    """An image as base64, and options."""

    data: Base64


class FormRequest(Options):
    """An image as a file, and options as fields."""

    data: bytes


class RequestLimits(Strict):
    max_image_pixels: PositiveInt
    max_decoded_pixels: PositiveInt
    max_response_bytes: PositiveInt
    max_cost: Annotated[
        PositiveInt, Field(description="Maximum number of forward passes per request.")
    ]


class Description(ModelRecord):
    """The model's record, options, limits and device."""

    options: dict[str, JsonValue]
    media_types: list[str]
    image_formats: list[str]
    limits: RequestLimits
    device: str
    precision: str


_RESPONSES: list[type[BaseModel]] = [SegmentationResponse, Description, ErrorBody, TorchServeError]
_RESPONSES += [PlainError, InferResponse, ModelMetadata, HuggingFaceSegment]
_REQUESTS = (JsonRequest, FormRequest, InferRequest, HuggingFaceRequest)


def response_schema() -> Json:
    """The JSON Schema of the response to an image."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SegmentationResponse.model_json_schema(mode="serialization"),
    }


def openapi() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segserve",
            "version": __version__,
            "summary": "Semantic segmentation over HTTP: an image in the request, "
            "the class of every pixel in the response.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [_INFERENCE],
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _schemas() -> Json:
    template = "#/components/schemas/{model}"
    _, responses = models_json_schema(
        [(model, "serialization") for model in _RESPONSES], ref_template=template
    )
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=template
    )
    codes = list(dict.fromkeys(kind.code for kind in error_classes()))
    responses["$defs"]["ErrorDetail"]["properties"]["code"]["enum"] = codes
    return {**requests["$defs"], **responses["$defs"]}


def _paths() -> Json:
    version = _path_parameter("version", "1.0")
    return {
        "/predictions/{model}": _prediction([]),
        "/predictions/{model}/{version}": _prediction([version], suffix="OfVersion"),
        "/ping": {"get": _ping()},
        "/models/{model}": {"servers": [_MANAGEMENT], "get": _describe()},
        **_open_inference("/v2/models/{model}", []),
        **_open_inference("/v2/models/{model}/versions/{version}", [version], suffix="OfVersion"),
        "/hf/{model}": _hugging_face(),
    }


def _open_inference(path: str, parameters: list[Json], suffix: str = "") -> Json:
    """The endpoints of a model in the Open Inference Protocol v2."""
    shared = {"parameters": [_model_parameter(), *parameters]}
    binary = {"application/octet-stream": _BINARY}
    metadata = _operation(
        f"modelMetadata{suffix}",
        "Inputs and outputs of a model (Open Inference Protocol v2)",
        _translated(_json(_reference("ModelMetadata")), "400", "404", "503"),
    )
    ready = _operation(
        f"modelReady{suffix}",
        "Whether a model is ready (Open Inference Protocol v2)",
        _translated(
            _json({"type": "object", "properties": {"ready": {"const": True}}}), "400", "404", "503"
        ),
    )
    infer = _operation(
        f"infer{suffix}",
        "The class of every pixel of an image (Open Inference Protocol v2)",
        _translated({**_json(_reference("InferResponse")), **binary}, *_errors()),
        body={**_json(_reference("InferRequest")), **binary},
    )
    return {
        path: {**shared, "get": metadata},
        f"{path}/ready": {**shared, "get": ready},
        f"{path}/infer": {**shared, "post": infer},
    }


def _hugging_face() -> Json:
    segments = {"type": "array", "items": _reference("HuggingFaceSegment")}
    segment = _operation(
        "imageSegmentation",
        "The classes of an image, as Hugging Face's inference clients read them",
        _translated(_json(segments), *_errors()),
        body={**_json(_reference("HuggingFaceRequest")), "application/octet-stream": _BINARY},
    )
    return {"parameters": [_model_parameter()], "post": segment}


def _operation(name: str, summary: str, responses: Json, body: Json | None = None) -> Json:
    operation: Json = {"operationId": name, "summary": summary}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return {**operation, "responses": responses}


def _translated(content: Json, *statuses: str) -> Json:
    """The responses of another protocol, whose errors are plain."""
    error = _error_response("an error, as of /predictions", PlainError)
    return {"200": _response("The result.", content), **dict.fromkeys(statuses, error)}


def _path_parameter(name: str, example: str, field: str | None = None) -> Json:
    """A parameter with the rules of a field of the model's record."""
    schema = ModelRecord.model_json_schema()["properties"][field or name]
    kept = {key: value for key, value in schema.items() if key in ("type", "pattern")}
    return {"name": name, "in": "path", "required": True, "schema": kept, "example": example}


def _model_parameter() -> Json:
    return _path_parameter("model", "deeplabv3", "name")


def _prediction(parameters: list[Json], suffix: str = "") -> Json:
    """`POST` and `PUT` do the same; `curl -T` sends `PUT`."""
    types = [f"image/{name.lower()}" for name in FORMATS]
    content = {
        **dict.fromkeys((*types, "application/octet-stream"), _BINARY),
        "multipart/form-data": {"schema": _reference("FormRequest")},
        **_json(_reference("JsonRequest")),
    }
    responses = {"200": _segmented(), **_errors()}
    summary = "The class of every pixel of an image"
    return {
        "parameters": [_model_parameter(), *parameters, *_option_headers()],
        "post": _operation(f"segment{suffix}", summary, responses, content),
        "put": _operation(f"segmentFile{suffix}", summary, responses, content),
    }


def _option_headers() -> list[Json]:
    """Options as headers. A header is text, so a list is separated by commas."""
    headers = []
    for name, schema in Options.model_json_schema()["properties"].items():
        del schema["title"]
        header = {
            "name": f"X-Segment-{name.title()}",
            "in": "header",
            "description": schema.pop("description"),
            "schema": {"type": "string", "minLength": 1} if name == "classes" else schema,
        }
        headers.append(header)
    return headers


def _segmented() -> Json:
    content = dict.fromkeys((kind.value for kind in MediaType), _BINARY)
    content |= _json(_reference("SegmentationResponse"))
    timing = {"description": "Milliseconds by stage.", "schema": {"type": "string"}}
    coding = {
        "description": "`gzip` if the body is large JSON and `Accept-Encoding` names gzip.",
        "schema": {"type": "string"},
    }
    headers = {"Server-Timing": timing, "Content-Encoding": coding}
    return {"description": "The segmentation.", "headers": headers, "content": content}


def _errors() -> Json:
    """The error responses of the handler and of TorchServe, by status."""
    codes: dict[int, list[str]] = defaultdict(list)
    for kind in error_classes():
        codes[kind.status].append(kind.code)
    errors = {
        str(status): _error_response(", ".join(dict.fromkeys(names)), ErrorBody)
        for status, names in codes.items()
    }
    for status, reason in {
        "400": f"{errors['400']['description']}; a missing or wrong token (TorchServe)",
        "503": f"{errors['503']['description']}: the queue is full, or no worker is ready "
        "(TorchServe)",
    }.items():
        errors[status] = _error_response(reason, ErrorBody, TorchServeError)
    errors["404"] = _error_response("no such model or version (TorchServe)", TorchServeError)
    return dict(sorted(errors.items()))


def _ping() -> Json:
    healthy = _json(_object({"status": {"type": "string"}}))
    responses = {
        "200": _response("Every model has a worker that is ready.", healthy),
        "503": _error_response("a model has none", ErrorBody),
    }
    return _operation("ping", "Whether the server is ready", responses)


def _describe() -> Json:
    entry = _object(
        {"modelName": {"type": "string"}, "customizedMetadata": _reference("Description")}
    )
    customized = {"name": "customized", "in": "query", "required": True, "schema": {"const": True}}
    described = _json({"type": "array", "minItems": 1, "items": entry})
    responses = {
        "200": _response("The model.", described),
        "400": _error_response("a missing or wrong token", TorchServeError),
        "404": _error_response("no such model", TorchServeError),
    }
    operation = _operation("describe", "Describes the model; needs the management token", responses)
    return {**operation, "parameters": [_model_parameter(), customized]}


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _response(description: str, content: Json) -> Json:
    return {"description": description, "content": content}


def _error_response(description: str, *models: type[BaseModel]) -> Json:
    schemas = [_reference(model.__name__) for model in models]
    return _response(description, _json(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}))


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


DOCUMENTS = {"openapi.json": openapi, "response.schema.json": response_schema}


def document_text(name: str) -> str:
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(DOCUMENTS[name](), option=options).decode()


if __name__ == "__main__":
    for name in DOCUMENTS:
        write_whole(Path(*sys.argv[1:] or ["docs"]) / name, document_text(name))
