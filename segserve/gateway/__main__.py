"""The image's command: serves until it is stopped. It exits with 0, or with one log line and 1 if
it cannot serve.
"""

import asyncio
import logging
import os
import sys

from ..engines.errors import ServerError
from ..signing import SignatureError
from .json_log import log_to


def main() -> int:
    """Returns 0 if it was stopped, 1 if it could not serve."""
    log_to(sys.stdout)
    try:
        from .serve import serve
        from .settings import Settings

        settings = Settings.from_environment(os.environ)
        settings.check_machine()
        asyncio.run(serve(settings))
    except (ServerError, SignatureError, OSError, ImportError) as error:
        logging.getLogger("segserve.gateway").error("cannot serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
