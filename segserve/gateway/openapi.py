"""The OpenAPI 3.1 document of the HTTP contract: openapi.yaml, and what follows from the code.

`python -m segserve.gateway.openapi [FOLDER]` writes it and the JSON Schema of responses to `docs/`.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import yaml
from pydantic import BaseModel, Field, JsonValue, PositiveInt
from pydantic.json_schema import models_json_schema

from .. import __version__
from ..runtime.decode.opening import FORMATS
from ..runtime.errors import error_classes
from ..runtime.files import write_whole
from ..runtime.record import ModelRecord
from ..schema import Base64, Strict
from ..schema.request import Options
from ..schema.response import ErrorBody, SegmentationResponse, TorchServeError
from .open_inference import InferRequest, InferResponse, ModelMetadata
from .protocols import HuggingFaceRequest, HuggingFaceSegment, PlainError

Json = dict[str, Any]

_PATHS_WITH_OPTIONS = ("/predictions/{model}", "/predictions/{model}/{version}")


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
    document: Json = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
    document["info"]["version"] = __version__
    components, options = document["components"], _option_headers()
    components["schemas"] = _schemas()
    components["parameters"] |= options
    components["responses"] |= _error_responses()
    for name, field in (("model", "name"), ("version", "version")):
        rule = ModelRecord.model_json_schema()["properties"][field]
        schema = {key: rule[key] for key in ("type", "pattern")}
        components["parameters"][name]["schema"] = schema
    references = [{"$ref": f"#/components/parameters/{name}"} for name in options]
    for path in _PATHS_WITH_OPTIONS:
        item = document["paths"][path]
        item["parameters"] = [*item["parameters"], *references]
    content = components["requestBodies"]["Image"]["content"]
    image = content["application/octet-stream"]
    content |= {f"image/{name.lower()}": image for name in FORMATS}
    return document


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


def _option_headers() -> Json:
    """Options as headers, by name. A header is text, so a list is separated by commas."""
    headers = {}
    for option, schema in Options.model_json_schema()["properties"].items():
        del schema["title"]
        name = f"X-Segment-{option.title()}"
        headers[name] = {
            "name": name,
            "in": "header",
            "description": schema.pop("description"),
            "schema": {"type": "string", "minLength": 1} if option == "classes" else schema,
        }
    return headers


def _error_responses() -> Json:
    """The error responses of the handler and of TorchServe, by status."""
    codes: dict[int, list[str]] = defaultdict(list)
    for kind in error_classes():
        codes[kind.status].append(kind.code)
    texts = {status: ", ".join(dict.fromkeys(names)) for status, names in codes.items()}
    texts[400] += "; a missing or wrong token"
    texts[503] += ": the queue is full, or no worker is ready"
    errors = {str(status): _error(text, ErrorBody) for status, text in texts.items()}
    for status in (400, 503):
        errors[str(status)] = _error(texts[status], ErrorBody, TorchServeError)
    return errors | {"404": _error("no such model or version", TorchServeError)}


def _error(description: str, *models: type[BaseModel]) -> Json:
    schemas = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


DOCUMENTS = {"openapi.json": openapi, "response.schema.json": response_schema}


def document_text(name: str) -> str:
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(DOCUMENTS[name](), option=options).decode()


if __name__ == "__main__":
    for name in DOCUMENTS:
        write_whole(Path(*sys.argv[1:] or ["docs"]) / name, document_text(name))
