"""The ports of the container: bound before anything is started, closed before the last response is
sent.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web, web_response
from aiohttp.http_exceptions import HttpProcessingError

from ..engines.errors import ServerError

_BACKLOG = 512


class _WithoutItsText(logging.Filter):
    """Logs a request that is not HTTP as one line.

    Its text may contain a token, and its traceback would flood the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.exc_info = None
            record.msg = "400: no HTTP, from %s"
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


logger = logging.getLogger("segserve.gateway.http")
logger.addFilter(_WithoutItsText())


def bind(host: str, port: int, variable: str) -> socket.socket:
    """Binds a listening socket. Connections wait until the socket is served.

    Args:
        variable: the environment variable that sets the port.

    Raises:
        ServerError: the port is in use, or is not permitted.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        way_out = (
            "stop what listens there, or set another port"
            if error.errno == errno.EADDRINUSE
            else "set another"
        )
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror}; {way_out} with {variable}"
        ) from error
    return taken


@asynccontextmanager
async def listening(
    apps: Sequence[tuple[web.Application, socket.socket]],
    *,
    drain_timeout_s: float,
    late_request_s: float = 0.5,
) -> AsyncIterator[None]:
    """Serves the applications on the sockets.

    At the end, it accepts no new connections and completes the pending requests.

    Args:
        drain_timeout_s: the time limit for pending responses at the end.
        late_request_s: at the end, the time in which an open connection may still send its request.
    """
    # aiohttp itself rejects some requests, such as requests that are not HTTP. Its responses would
    # reveal versions.
    web_response.SERVER_SOFTWARE = "segserve"  # type: ignore[attr-defined]
    runners = []
    try:
        for app, taken in apps:
            # Bodies are forwarded as they arrive. Decompressed, they would not match their headers.
            runner = web.AppRunner(
                app,
                access_log=None,
                logger=logger,
                shutdown_timeout=drain_timeout_s,
                auto_decompress=False,
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
