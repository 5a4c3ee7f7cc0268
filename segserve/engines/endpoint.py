"""The address for predictions: the one that was given, else the running server of this folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ServerError
from .local.process import LocalServer
from .ray.process import RayServe
from .running import RunningServer
from .torchserve.process import TorchServe

SERVE_DIR = Path(".run/serve")
"""Where `segserve serve` keeps the server that it leaves running, below the current folder."""

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_MODEL = "deeplabv3"
ENGINES: Mapping[str, type[RunningServer]] = {
    kind.engine: kind for kind in (TorchServe, LocalServer, RayServe)
}
TOKEN_VARIABLE = "SEGSERVE_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE = "SEGSERVE_TOKEN_FILE"  # noqa: S105
"""Names a file that holds the token, as secrets are handed to containers."""


@dataclass(frozen=True)
class Endpoint:
    """`running` is the server of this folder, where that is the one meant."""

    url: str
    token: str | None
    model: str
    running: RunningServer | None


def find_endpoint(
    url: str | None = None, *, token: str | None = None, model: str | None = None
) -> Endpoint:
    """What was not named is that of the server that runs here, if its address is the one meant.

    A token of the environment comes last: that of a server which runs here is newer than any that
        was written down.

    Raises:
        ServerError: the file that `$SEGSERVE_TOKEN_FILE` names cannot be read.
    """
    running = running_server()
    if running is not None and url is not None and _normal(url) != _normal(running.inference_url):
        running = None
    token = token or (running.inference_token if running else None) or _token_of_environment()
    name = model or (running.models[0] if running else DEFAULT_MODEL)
    return Endpoint(
        url or (running.inference_url if running else DEFAULT_URL), token, name, running
    )


def running_server() -> RunningServer | None:
    """The server that `segserve serve` left running here, whatever its engine."""
    return next((server for kind in ENGINES.values() if (server := kind.running(SERVE_DIR))), None)


def _token_of_environment() -> str | None:
    token, file = (
        os.environ.get(name, "").strip() for name in (TOKEN_VARIABLE, TOKEN_FILE_VARIABLE)
    )
    try:
        return token or (Path(file).read_text(encoding="utf-8").strip() if file else "") or None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ServerError(
            f"${TOKEN_FILE_VARIABLE} names a file that cannot be read: {reason}"
        ) from error


def _normal(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")
