"""The image's health check: `python -m segserve.gateway.health` exits with 0 if a worker of a
model is READY.
"""

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 4
_EVERYWHERE = {"", "0.0.0.0", "::"}  # noqa: S104 - not bound here


def main() -> int:
    """Returns 0 if the server is ready, else 1. Prints the server's response."""
    host = os.environ.get("SEGSERVE_HOST", "")
    port = os.environ.get("SEGSERVE_PORT") or 8080
    url = f"http://{'127.0.0.1' if host in _EVERYWHERE else host}:{port}/ping"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            url, timeout=_TIMEOUT_S
        ) as answer:
            print(answer.read().decode())  # noqa: T201 - for `docker inspect`
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode())  # noqa: T201
    except OSError as error:
        print(f"{url}: {error}")  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
