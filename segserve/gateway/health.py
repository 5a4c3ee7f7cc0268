"""The image's health check: it exits with 0 if every model has a worker that is ready."""

import os
import sys

import requests

from ..engines.process_tree import get_directly

_TIMEOUT_S = 4
_EVERY_INTERFACE = {"", "0.0.0.0", "::"}  # noqa: S104 - not bound here


def main() -> int:
    """Returns 0 if the server is ready, else 1. Prints the server's response in one line."""
    host = os.environ.get("SEGSERVE_HOST", "")
    port = os.environ.get("SEGSERVE_PORT") or 8080
    url = f"http://{'127.0.0.1' if host in _EVERY_INTERFACE else host}:{port}/ping"
    try:
        response = get_directly(url, timeout_s=_TIMEOUT_S)
    except requests.RequestException as error:
        print(f"{url}: {error}")  # noqa: T201 - for `docker inspect`
        return 1
    print(" ".join(response.text.split()))  # noqa: T201
    return 0 if response.ok else 1


if __name__ == "__main__":
    sys.exit(main())
