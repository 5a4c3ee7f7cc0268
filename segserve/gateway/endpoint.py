"""The address for predictions: the given one, else that of the server in this folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..client.request import DEFAULT_MODEL
from ..engines.errors import ServerError
from .background import Server

SERVE_DIR = Path(".run/serve")
"""The run folder of `segserve serve`, below the current folder."""

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "SEGSERVE_URL"
TOKEN_VARIABLE = "SEGSERVE_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE_VARIABLE = "SEGSERVE_TOKEN_FILE"  # noqa: S105
"""Names a file that holds the token, as containers get secrets."""


@dataclass(frozen=True)
class Endpoint:
    """Where to send requests. `running` is the server of this folder, if that is the one."""

    url: str
    token: str | None
    model: str
    running: Server | None


def find_endpoint(
    url: str | None = None, *, token: str | None = None, model: str | None = None
) -> Endpoint:
    """Completes what is not given: the address from $SEGSERVE_URL, then everything from the server
    that runs in this folder, if that is its address.

    A token in the environment comes last: the token of a server that runs here is newer.

    Raises:
        ServerError: the file that `$SEGSERVE_TOKEN_FILE` names cannot be read.
    """
    url = url or os.environ.get(URL_VARIABLE, "").strip() or None
    running = running_server()
    if running is not None and url is not None and _normal(url) != _normal(running.inference_url):
        running = None
    token = token or (running.inference_token if running else None) or _token_of_environment()
    name = model or (running.models[0] if running else DEFAULT_MODEL)
    return Endpoint(
        url or (running.inference_url if running else DEFAULT_URL), token, name, running
    )


def running_server() -> Server | None:
    """The server that `segserve serve` left running in this folder."""
    return Server.running(SERVE_DIR)


def _token_of_environment() -> str | None:
    token, file = (
        os.environ.get(name, "").strip() for name in (TOKEN_VARIABLE, TOKEN_FILE_VARIABLE)
    )
    try:
        return token or (Path(file).read_text(encoding="utf-8").strip() if file else "") or None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ServerError(
            f"${TOKEN_FILE_VARIABLE} names a file that cannot be read: {reason}"
        ) from error


def _normal(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")
