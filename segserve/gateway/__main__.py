"""Runs a gateway until it is stopped. If it cannot serve, it exits with 1 and one log line.

Worker processes import this module again, under another name. So it imports nothing at that time.
"""

import sys


def main() -> int:
    import asyncio
    import logging
    import os

    from . import CANNOT_SERVE
    from .json_log import log_to

    log_to(sys.stdout)
    try:
        from ..engines.errors import ServerError
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


if __name__ == "__main__":
    sys.exit(main())
