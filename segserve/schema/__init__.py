"""The HTTP contract as data: the only definition of class rows, segmentations and errors.

Every archive carries this package. `segserve.gateway.openapi` makes documents of it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Unit = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class Strict(BaseModel):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(BaseModel):
    """A frozen part of a response. Docstrings below its fields are their descriptions.

    Clients ignore unknown members, because a newer server may send more. The JSON Schema of this
    version has no others.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        use_attribute_docstrings=True,
        json_schema_extra={"additionalProperties": False},
    )
