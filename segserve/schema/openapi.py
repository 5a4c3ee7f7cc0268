"""The OpenAPI 3.1 document of the HTTP contract, made from the models that requests and answers
follow.
"""

from collections import defaultdict
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .. import __version__
from ..runtime.decode.image import FORMATS
from ..runtime.errors import error_classes
from ..runtime.options import MediaType, Options
from ..runtime.record import ModelRecord
from .response import Base64, Description, Error, SegmentationResponse, ServerError

Json = dict[str, Any]

_INFERENCE = {"url": "http://127.0.0.1:8080", "description": "inference"}
_MANAGEMENT = {"url": "http://127.0.0.1:8081", "description": "management"}


class JsonRequest(Options):
    """An image as base64, and options beside it."""

    data: Base64


class FormRequest(Options):
    """An image as a file, and options as fields beside it."""

    data: bytes


def response_schema() -> Json:
    """The JSON Schema of an answer to an image."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SegmentationResponse.model_json_schema(mode="serialization"),
    }


def openapi() -> Json:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segserve",
            "version": __version__,
            "summary": "Semantic segmentation over HTTP: an image goes in, "
            "the class of every pixel comes back.",
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
    models: list[type[BaseModel]] = [SegmentationResponse, Description, Error, ServerError]
    _, answers = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    _, requests = models_json_schema(
        [(model, "validation") for model in (JsonRequest, FormRequest)],
        ref_template="#/components/schemas/{model}",
    )
    return {**requests["$defs"], **answers["$defs"]}


def _paths() -> Json:
    version = _path_parameter(
        "version", ModelRecord.model_json_schema()["properties"]["version"], "1.0"
    )
    return {
        "/predictions/{model}": _prediction([]),
        "/predictions/{model}/{version}": _prediction([version], suffix="OfVersion"),
        "/ping": {"get": _ping()},
        "/models/{model}": {"servers": [_MANAGEMENT], "get": _describe()},
    }


def _path_parameter(name: str, schema: Json, example: str) -> Json:
    kept = {key: value for key, value in schema.items() if key in ("type", "pattern")}
    return {"name": name, "in": "path", "required": True, "schema": kept, "example": example}


def _model_parameter() -> Json:
    return _path_parameter(
        "model", ModelRecord.model_json_schema()["properties"]["name"], "deeplabv3"
    )


def _prediction(parameters: list[Json], suffix: str = "") -> Json:
    """`PUT` is what `curl -T` sends; it does the same."""
    shared = {
        "summary": "The class of every pixel of an image",
        "requestBody": {"required": True, "content": _request_content()},
        "responses": {"200": _segmented(), **_refusals()},
    }
    return {
        "parameters": [_model_parameter(), *parameters, *_option_headers()],
        "post": {"operationId": f"segment{suffix}", **shared},
        "put": {"operationId": f"segmentFile{suffix}", **shared},
    }


def _option_headers() -> list[Json]:
    """Options as headers, which are text: there a list is separated by commas."""
    return [
        {
            "name": f"X-Segment-{name.title()}",
            "in": "header",
            "description": schema["description"],
            "schema": {"type": "string", "minLength": 1} if name == "classes" else _bare(schema),
        }
        for name, schema in Options.model_json_schema()["properties"].items()
    ]


def _bare(schema: Json) -> Json:
    return {key: value for key, value in schema.items() if key not in ("title", "description")}


def _request_content() -> Json:
    image: Json = {"schema": {"type": "string", "format": "binary"}}
    types = [f"image/{name.lower()}" for name in FORMATS]
    return {
        **dict.fromkeys((*types, "application/octet-stream"), image),
        "multipart/form-data": {"schema": _reference("FormRequest")},
        "application/json": {"schema": _reference("JsonRequest")},
    }


def _segmented() -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {MediaType.JSON.value: {"schema": _reference("SegmentationResponse")}}
    content |= {
        media_type.value: binary for media_type in MediaType if media_type is not MediaType.JSON
    }
    timing = {"description": "Milliseconds by stage.", "schema": {"type": "string"}}
    return {
        "description": "The segmentation.",
        "headers": {"Server-Timing": timing},
        "content": content,
    }


def _refusals() -> Json:
    """By status, the handler's errors, and those of TorchServe, which come in its own form."""
    codes: dict[int, list[str]] = defaultdict(list)
    for kind in error_classes():
        codes[kind.status].append(kind.code)
    refusals = {
        str(status): _refusal(
            ", ".join(dict.fromkeys(names)), Error, *([ServerError] if status == 400 else [])
        )
        for status, names in codes.items()
    }
    refusals["400"]["description"] += "; a missing or wrong token (TorchServe)"
    refusals["413"] = {
        **refusals["413"],
        "description": f"{refusals['413']['description']}; empty where TorchServe refused the body",
    }
    refusals["404"] = _refusal("no such model or version (TorchServe)", ServerError)
    refusals["503"] = _refusal(
        f"{', '.join(codes[503])}: the queue is full, or no worker is ready; TorchServe has its "
        "own form for it",
        Error,
        ServerError,
    )
    return dict(sorted(refusals.items()))


def _refusal(description: str, *models: type[BaseModel]) -> Json:
    schemas = [_reference(model.__name__) for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _ping() -> Json:
    healthy = {
        "type": "object",
        "properties": {"status": {"type": "string"}},
        "required": ["status"],
    }
    return {
        "operationId": "ping",
        "summary": "Whether the server is up; it says so before its models are loaded, too",
        "responses": {
            "200": {"description": "It is.", "content": {"application/json": {"schema": healthy}}},
            "400": _refusal("a missing or wrong token", ServerError),
        },
    }


def _describe() -> Json:
    entry = {
        "type": "object",
        "properties": {
            "modelName": {"type": "string"},
            "customizedMetadata": _reference("Description"),
        },
        "required": ["modelName", "customizedMetadata"],
    }
    customized = {"name": "customized", "in": "query", "required": True, "schema": {"const": True}}
    described = {"type": "array", "minItems": 1, "items": entry}
    return {
        "operationId": "describe",
        "summary": "What the model is, knows and accepts; asks for the management token",
        "parameters": [_model_parameter(), customized],
        "responses": {
            "200": {
                "description": "The model.",
                "content": {"application/json": {"schema": described}},
            },
            "400": _refusal("a missing or wrong token", ServerError),
            "404": _refusal("no such model", ServerError),
        },
    }


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
