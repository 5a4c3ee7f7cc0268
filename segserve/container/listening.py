"""The ports of the container: taken before anything is started, closed before the last answer is out."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web, web_response
from aiohttp.http_exceptions import HttpProcessingError

from ..server.errors import ServerError

_BACKLOG = 512


class _WithoutItsText(logging.Filter):
    """Tells of a request that is no HTTP in one line: its text may hold a token, and floods are made of tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.exc_info = None
            record.msg = "400: no HTTP, from %s"
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


logger = logging.getLogger("segserve.door.http")
logger.addFilter(_WithoutItsText())


def bind(host: str, port: int, variable: str) -> socket.socket:
    """A socket that listens; whoever connects waits until somebody answers.

    Args:
        variable: the one that sets the port.

    Raises:
        ServerError: the port is taken, or may not be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        way_out = "stop what listens there, or set another port" if error.errno == errno.EADDRINUSE else "set another"
        raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}; {way_out} with {variable}") from error
    return taken


@asynccontextmanager
async def listening(
    apps: Sequence[tuple[web.Application, socket.socket]], *, drain_timeout_s: float, late_request_s: float = 0.5
) -> AsyncIterator[None]:
    """Answers at the sockets; at the end no connection is taken any more, and what was asked is answered first.

    Args:
        drain_timeout_s: how long answers may take then.
        late_request_s: how long a connection may take then to bring the request it was made for.
    """
    # What aiohttp itself refuses, such as a request that is no HTTP, reaches no application, and would tell versions.
    web_response.SERVER_SOFTWARE = "segserve"  # type: ignore[attr-defined]
    runners = []
    try:
        for app, taken in apps:
            # Bodies are passed on as they come: unpacked they would no longer be what their headers say.
            runner = web.AppRunner(
                app, access_log=None, logger=logger, shutdown_timeout=drain_timeout_s, auto_decompress=False
            )
            await runner.setup()
            runners.append(runner)
            await web.SockSite(runner, taken, backlog=_BACKLOG).start()
        yield
    finally:
        for runner in runners:
            for site in list(runner.sites):
                await site.stop()
        await asyncio.sleep(late_request_s)
        await asyncio.gather(*(runner.cleanup() for runner in runners))
