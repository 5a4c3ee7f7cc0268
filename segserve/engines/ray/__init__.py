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
    under `args`.

    Attributes:
        archive: one archive, or several separated by commas; every machine reads them at that path.
            By default `$SEGSERVE_ARCHIVE`.
        trust: the file of the public keys that archives must be signed with; by default any archive
            is served.
        token_authorization: whether requests must carry a token.
        token_file: the file of the token; created with mode 0600 if it is missing. By default in
            the current folder.
        max_request_bytes: a larger request is rejected.
        min_replicas, max_replicas: processes with the network, per model; by default `minWorkers`
            and `maxWorkers` of its model-config.yaml.
        threads: CPU threads of a replica, and the cores that Ray reserves for it; by default the
            cores of a machine divided by `max_replicas`.
        gateways: processes that read requests and write responses.
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
