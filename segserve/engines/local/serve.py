"""The main process: uvicorn with the HTTP application, and the pool of workers."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from ...runtime.errors import ModelError
from ..properties import read_properties
from ..running import KEY_FILE
from ..torchserve.launch import CONFIG_FILE
from ..workers.application import HandlerApplication
from ..workers.archives import ServedArchive, ServedModel, read_archives
from ..workers.process import FAILED
from .pool import LocalPool


def main(paths: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT. Returns 1 if an archive cannot be served."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_serve(paths))
    except (ModelError, OSError) as error:
        print(f"{FAILED}{' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - the log of the server
        return 1
    return 0


async def _serve(paths: Sequence[str]) -> None:
    settings = read_properties(Path(CONFIG_FILE))
    archives = [_with_queue_size(archive, settings) for archive in read_archives(paths)]
    pool = LocalPool(archives)
    with_tokens = settings.get("disable_token_authorization") != "true"
    application = HandlerApplication(
        pool,
        {archive.name: ServedModel.of(archive) for archive in archives},
        key_file=KEY_FILE if with_tokens else None,
        token_minutes=int(settings.get("token_expiration_min", 60)),
        max_request_bytes=int(settings.get("max_request_size", 6_553_500)),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            application, lifespan="off", access_log=False, log_config=None, server_header=False
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises a signal again after it has ended
    address = urlsplit(settings["inference_address"])
    with socket.create_server((address.hostname or "127.0.0.1", address.port or 80)) as listening:
        pool.start()
        try:
            # At SIGTERM, uvicorn completes the pending requests and ends.
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            waiting: set[asyncio.Future[Any]] = {serving, pool.failure}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            server.force_exit = pool.failure.done()
            await serving
        finally:
            await pool.stop()
    if pool.failure.done():
        raise ModelError(pool.failure.result())


def _with_queue_size(archive: ServedArchive, settings: Mapping[str, str]) -> ServedArchive:
    """The archive, with TorchServe's `job_queue_size` unless its own configuration has a value."""
    config = archive.config
    if "job_queue_size" not in settings or "jobQueueSize" in config.model_fields_set:
        return archive
    size = int(settings["job_queue_size"])
    return replace(archive, config=config.model_copy(update={"jobQueueSize": size}))
