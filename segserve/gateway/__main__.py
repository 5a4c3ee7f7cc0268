"""Runs a gateway until it is stopped. If it cannot serve, it exits with 1 and one log line.

With the argument `health`, it is the image's health check instead: it exits with 0 if the gateway
is ready, and prints its response. Worker processes import this module again, under another name. So
it imports nothing at that time.
"""

import sys

_HEALTH_TIMEOUT_S = 4
_EVERY_INTERFACE = {"", "0.0.0.0", "::"}  # noqa: S104 - not bound here


def main() -> int:
    import asyncio
    import logging
    import os

    from ..engines.json_log import log_to
    from . import CANNOT_SERVE

    log_to(sys.stdout)
    try:
        from ..engines import ServerError
        from ..signing import SignatureError
        from .serve import serve
        from .settings import GatewaySettings, check_memory
    except ImportError as error:
        logging.getLogger("segserve.gateway").error("%s%s", CANNOT_SERVE, error)
        return 1
    try:
        check_memory()
        asyncio.run(serve(GatewaySettings.from_environment(os.environ)))
    except (ServerError, SignatureError, OSError, ImportError) as error:
        logging.getLogger("segserve.gateway").error("%s%s", CANNOT_SERVE, error)
        return 1
    return 0


def check_health() -> int:
    import os

    import requests

    from ..engines.processes import get_directly

    host = os.environ.get("SEGSERVE_HOST", "")
    if host in _EVERY_INTERFACE:
        host = "127.0.0.1"
    elif ":" in host:  # IPv6
        host = f"[{host}]"
    url = f"http://{host}:{os.environ.get('SEGSERVE_PORT') or 8080}/ping"
    try:
        response = get_directly(url, timeout_s=_HEALTH_TIMEOUT_S)
    except requests.RequestException as error:
        print(f"{url}: {error}")  # noqa: T201 - for `docker inspect`
        return 1
    print(" ".join(response.text.split()))  # noqa: T201
    return 0 if response.ok else 1


if __name__ == "__main__":
    sys.exit(check_health() if sys.argv[1:] == ["health"] else main())
