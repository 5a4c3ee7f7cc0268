"""The same archive on Ray Serve, with the same HTTP contract (docs/ray.md).

`segserve serve --engine ray` starts one that stays; a Ray cluster of yours takes the application as any other:

    serve run segserve.ray_app:app archive=build/deeplabv3.mar

Nothing here is imported by the archive, and the replicas of a model import nothing of `segserve.runtime` but the copy
that their archive carries.
"""

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

if TYPE_CHECKING:
    from ray.serve import Application

ARCHIVE_VARIABLE = "SEGSERVE_ARCHIVE"
KEY_FILE = "key_file.json"  # TorchServe's own name for it


class Arguments(BaseModel):
    """What `serve run segserve.ray_app:app` takes as `name=value`, and `serve deploy` under `args`.

    Attributes:
        archive: one archive, or several with commas between; every machine reads them at that path. By default
            `$SEGSERVE_ARCHIVE`.
        trust: the file of the public keys that archives must be signed with; by default any archive is served.
        token_authorization: whether requests must carry a token.
        key_file: where the tokens stand; made where it is missing, mode 0600. By default in the current folder.
        token_minutes: how long new tokens live.
        max_request_bytes: a request of more bytes is refused.
        min_replicas, max_replicas: processes with the network, of every model; by default `minWorkers` and `maxWorkers`
            of its model-config.yaml.
        threads: CPU threads of a replica, and so the cores that Ray sets aside for it; by default the cores of a
            machine shared among `max_replicas`.
        doors: processes that read requests and write answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str = Field(default_factory=lambda: os.environ.get(ARCHIVE_VARIABLE, ""))
    trust: str = ""
    token_authorization: bool = True
    key_file: str = KEY_FILE
    token_minutes: PositiveInt = 60
    max_request_bytes: PositiveInt = 2**26
    min_replicas: PositiveInt | None = None
    max_replicas: PositiveInt | None = None
    threads: PositiveInt | None = None
    doors: PositiveInt = 1


def app(arguments: Arguments) -> "Application":
    """The application that serves the archive.

    Raises:
        ModelError: no archive was named, or it is none that can be served.
        SignatureError: it is not signed by a trusted key.
    """
    from .build import build_app

    return build_app(arguments)
