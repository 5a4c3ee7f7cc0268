"""A worker process: the handler of one archive. It receives batches from the main process.

Nothing here imports `segserve.runtime`, for the reason given in `workers.loading`.
"""

import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from ...gpu import count_gpus
from ..workers.loading import BatchHandler, load_handler
from ..workers.messages import Handled

logger = logging.getLogger(__name__)


BatchResult = list[Handled] | None
"""The responses to a batch, or None if the handler failed."""


def run_worker(
    connection: Connection,
    archive: Path,
    folder: Path,
    index: int,
    on_gpu: bool,
    metrics: Mapping[str, Sequence[str]],
) -> None:
    """Loads the archive and handles batches until the main process closes the connection.

    The first message is None if the handler is ready, else the reason why it is not.

    Args:
        folder: an empty folder for the archive's content.
        index: number of the worker; workers are distributed over the GPUs in this order.
        on_gpu: whether the worker may use a GPU.
        metrics: see `load_handler`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides when workers end
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        gpu_id = _gpu(index) if on_gpu else None
        loaded = load_handler(archive, folder, overrides={}, gpu_id=gpu_id, metrics=metrics)
    except Exception as error:
        logger.exception("the archive cannot be loaded")
        connection.send(str(error) or type(error).__name__)
        return
    handler = BatchHandler(*loaded)
    with suppress(EOFError, BrokenPipeError):  # the main process has ended
        connection.send(None)
        while True:
            connection.send(_handled(handler, connection))


def _handled(handler: BatchHandler, connection: Connection) -> BatchResult:
    requests = connection.recv()
    try:
        handled = handler.handle(requests)
    except Exception:
        logger.exception("the handler failed at a batch")
        return None
    if len(handled) != len(requests):
        logger.error("%d responses to %d requests", len(handled), len(requests))
        return None
    return handled


def _gpu(index: int) -> int | None:
    count = count_gpus()
    return index % count if count else None
