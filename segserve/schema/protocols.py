"""The requests and responses of other protocols that the gateway speaks.

They are open: their specifications allow members beside these.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

_Parameters = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]


class PlainError(BaseModel):
    """The body of an error response of the other protocols."""

    error: Annotated[str, Field(description="What is wrong, what was expected, what to do.")]


class InferTensor(BaseModel):
    """An image: as base64 (`BYTES`), or RGB pixels, flat or nested (`UINT8`)."""

    name: Literal["image"]
    datatype: Literal["BYTES", "UINT8"]
    shape: Annotated[
        list[int], Field(description="[1] for BYTES; [1, H, W, 3] or [H, W, 3] for UINT8.")
    ]
    data: Annotated[
        Any,  # a single string is accepted too
        WithJsonSchema({"type": "array", "items": {}}),
        Field(description="Missing in the binary extension, with binary_data_size."),
    ] = []
    parameters: _Parameters = {}


class InferOutput(BaseModel):
    """A requested output."""

    name: Literal["label_map", "confidence"]
    parameters: _Parameters = {}


class InferRequest(BaseModel):
    """A request of the Open Inference Protocol v2."""

    id: str | None = None
    inputs: Annotated[list[InferTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[
        list[InferOutput], BeforeValidator(lambda value: value or [{"name": "label_map"}])
    ] = Field([], validate_default=True)
    parameters: Annotated[
        _Parameters, Field(description="Native options, and binary_data_output.")
    ] = {}


class InferResult(BaseModel):
    """An output: class ids, or 255 times the top probabilities."""

    name: Literal["label_map", "confidence"]
    datatype: Literal["UINT8"]
    shape: Annotated[list[int], Field(description="[1, H, W].")]


class InferResponse(BaseModel):
    """A response of the Open Inference Protocol v2."""

    model_name: str
    model_version: str
    outputs: Annotated[list[InferResult], Field(min_length=1)]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, as the Open Inference Protocol v2 describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class HuggingFaceRequest(BaseModel):
    """An image as base64. Of the parameters, `threshold` and `subtask` have a meaning."""

    inputs: str
    parameters: _Parameters = {}


class HuggingFaceSegment(BaseModel):
    """A class of the image."""

    label: str
    score: Annotated[float, Field(description="Mean of the top probability of its pixels.")]
    mask: Annotated[str, Field(description="A grey PNG in base64: 255 where the class is.")]
