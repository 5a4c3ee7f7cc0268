"""Serves the same archive on Ray Serve, with the same HTTP contract (docs/ray.md).

The replicas of a model import this module, and `segserve.runtime` only from the copy in their
archive. So this module imports neither that nor Ray.
"""

import os
import secrets
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

if TYPE_CHECKING:
    from ray.serve import Application

    from ...signing import TrustedKeys
    from .. import Engine

ARCHIVE_VARIABLE = "SEGSERVE_ARCHIVE"

# Ray adds /r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1
_LONGEST_TMP_BYTES = 36
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_METRICS_COLLECTION": "0",  # the gateway has the metrics
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 0 keeps Ray on the loopback interface
    "RAY_AUTH_MODE": "token",  # Ray's ports require the token of this run
}


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
        ServerError: no archive is named, or an archive cannot be served.
        SignatureError: an archive is not signed by a trusted key.
    """
    from .build import build_app

    return build_app(arguments)


def start_engine(
    archives: Sequence[Path], run_dir: Path, *, trusted: "TrustedKeys | None"
) -> "Engine":
    """The engine `ray` for the gateway. Ray finds its settings in the environment of this process.

    Raises ServerError: Ray is not installed, or as `stored_archives`.
    """
    from ...runtime.files import write_whole
    from .. import ServerError
    from ..processes import use_new_tmp_dir
    from ..store import stored_archives

    if find_spec("ray") is None:
        raise ServerError("Ray is not installed; install it with: pip install 'segserve[ray]'")
    stored = stored_archives(archives, run_dir, trusted=trusted)
    tmp_dir = use_new_tmp_dir(run_dir, longest_bytes=_LONGEST_TMP_BYTES)
    token_file = tmp_dir / "ray_token"
    write_whole(token_file, secrets.token_hex(32), mode=0o600)
    os.environ.update({**_RAY_ENVIRONMENT, "RAY_AUTH_TOKEN_PATH": str(token_file)})
    from .build import RayEngine

    return RayEngine(stored, tmp_dir)
