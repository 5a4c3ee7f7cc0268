"""Serves the same archive on Ray Serve, with the same HTTP contract (docs/ray.md).

`segserve serve --engine ray` starts a server. An existing Ray cluster runs the application like any
other:

    serve run segserve.engines.ray:app archive=build/deeplabv3.mar token_file=/run/secrets/token

The archive imports nothing from this package. The replicas of a model import `segserve.runtime`
only from the copy in their archive.
"""

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

if TYPE_CHECKING:
    from ray.serve import Application

ARCHIVE_VARIABLE = "SEGSERVE_ARCHIVE"


class Arguments(BaseModel):
    """The arguments of `serve run segserve.engines.ray:app` as `name=value`, and of `serve deploy`
    under `args`. docs/ray.md describes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str = Field(default_factory=lambda: os.environ.get(ARCHIVE_VARIABLE, ""))
    trust: str = ""
    token_authorization: bool = True
    token_file: str = "token"  # noqa: S105 - the name of a file
    max_request_bytes: PositiveInt = 2**26
    min_replicas: PositiveInt | None = None
    max_replicas: PositiveInt | None = None
    threads: PositiveInt | None = None
    gateways: PositiveInt = 1


def app(arguments: Arguments) -> "Application":
    """Builds the application that serves the archives.

    Raises:
        ModelError: no archive is named, or an archive cannot be served.
        SignatureError: an archive is not signed by a trusted key.
    """
    from .build import build_app

    return build_app(arguments)
