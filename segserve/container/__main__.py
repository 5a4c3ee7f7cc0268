"""The command of the image: serves until it is told to stop, and ends with 0; else with one line and 1."""

import asyncio
import logging
import os
import sys

from ..server.errors import ServerError
from ..signing import SignatureError
from .json_lines import log_to


def main() -> int:
    """0 where it was told to stop, 1 where it could not serve."""
    log_to(sys.stdout)
    try:
        from .serving import serve
        from .settings import Settings

        settings = Settings.from_environment(os.environ)
        settings.check_machine()
        asyncio.run(serve(settings))
    except (ServerError, SignatureError, OSError, ImportError) as error:
        logging.getLogger("segserve.container").error("cannot serve: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
