"""The worker processes of all models. Each model has one queue, and each worker takes batches from
it, as TorchServe's workers do.
"""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ...runtime.errors import InternalError, OverloadedError, UnavailableError
from ...runtime.telemetry.metrics import OWN
from ..workers.archives import ServedArchive
from ..workers.engine import WORKER_GONE, queue_full
from ..workers.messages import Handled, Received
from .worker import BatchResult, run_worker

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_STOP_S = 5
_POLL_S = 0.5
_LONGEST_RESTART_DELAY_S = 30


class PendingRequest(NamedTuple):
    """A request in the queue, and the future of its response."""

    received: Received
    response: asyncio.Future[Handled]


class WorkerLostError(Exception):
    """The process of a worker died, or took too long. The message is the reason."""


class LocalPool:
    """The workers of all archives, `minWorkers` of each. It belongs to one event loop.

    `failure` gets a result, the reason, if a worker cannot load its archive at the first start.
    """

    def __init__(self, archives: Sequence[ServedArchive]) -> None:
        self.failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queues = {
            archive.name: ModelQueue(archive.config.jobQueueSize) for archive in archives
        }
        self._workers = {
            archive.name: [
                LocalWorker(archive, index, self._queues[archive.name], self.failure)
                for index in range(archive.config.minWorkers)
            ]
            for archive in archives
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the workers. Requests wait in the queues until a worker is ready."""
        self._tasks = [
            asyncio.create_task(worker.run())
            for workers in self._workers.values()
            for worker in workers
        ]

    async def stop(self) -> None:
        """Ends the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        workers = [worker for workers in self._workers.values() for worker in workers]
        await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in workers))

    async def submit(self, model: str, received: Received) -> Handled:
        return await self._queues[model].put(received)

    async def worker_states(self, model: str) -> Sequence[str]:
        return [worker.status for worker in self._workers[model]]


class ModelQueue:
    """The requests of one model that wait for a worker."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._queue: asyncio.Queue[PendingRequest] = asyncio.Queue(size)

    async def put(self, received: Received) -> Handled:
        """Waits for the response.

        Raises:
            OverloadedError: the queue is full.
        """
        pending = PendingRequest(received, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(pending)
        except asyncio.QueueFull as error:
            raise OverloadedError(queue_full(self._size)) from error
        return await pending.response

    async def take(
        self, most: int, delay_s: float, *, died: asyncio.Future[None]
    ) -> list[PendingRequest]:
        """Returns up to `most` requests: waits for the first, then up to `delay_s` for others.

        Raises:
            WorkerLostError: `died` is done before there is a request.
        """
        first = asyncio.ensure_future(self._queue.get())
        try:
            waiting: set[asyncio.Future[Any]] = {first, died}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not first.done():
                first.cancel()
        if not first.done() or first.cancelled():
            raise WorkerLostError("the process died")
        batch = [first.result()]
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                while len(batch) < most:
                    batch.append(await self._queue.get())
        return [pending for pending in batch if not pending.response.done()]


class LocalWorker:
    """One worker process. It is replaced when it dies or takes too long."""

    def __init__(
        self, archive: ServedArchive, index: int, queue: ModelQueue, failure: asyncio.Future[str]
    ) -> None:
        self.status = "LOADING"
        self._archive = archive
        self._index = index
        self._queue = queue
        self._failure = failure
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._folder: TemporaryDirectory[str] | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{archive.name}-{index}")

    async def run(self) -> None:
        """Keeps a process running and gives it batches, until the task is cancelled."""
        config = self._archive.config
        delay_s, was_ready = 0.0, False
        while True:
            try:
                await self._in_thread(self._start)
                self.status, delay_s, was_ready = "READY", 0.0, True
                with self._watched() as died:
                    while True:
                        batch = await self._queue.take(
                            config.batchSize, config.maxBatchDelay / 1000, died=died
                        )
                        if batch:
                            await self._handle(batch)
            except WorkerLostError as error:
                self.status = "LOADING"
                logger.warning("%s, worker %d: %s", self._archive.name, self._index, error)
                await self._in_thread(self._kill)
                if not was_ready:
                    if not self._failure.done():
                        self._failure.set_result(
                            f"the model {self._archive.name!r} failed to load: {error}"
                        )
                    return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s + 1, _LONGEST_RESTART_DELAY_S)

    def close(self) -> None:
        """Ends the process: at once if it waits for a batch, else after a few seconds."""
        self._closed = True
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(_STOP_S)
        self._kill()

    @contextmanager
    def _watched(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the process has ended."""
        assert self._process is not None  # noqa: S101 - run() starts the process first
        loop, sentinel = asyncio.get_running_loop(), self._process.sentinel
        died: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            loop.remove_reader(sentinel)
            died.set_result(None)

        loop.add_reader(sentinel, end)
        try:
            yield died
        finally:  # before the process is reaped and its file descriptor is used again
            loop.remove_reader(sentinel)

    async def _handle(self, batch: Sequence[PendingRequest]) -> None:
        requests = [pending.received for pending in batch]
        try:
            result = await self._in_thread(self._exchange, requests)
        except WorkerLostError:
            for pending in batch:
                _fail(pending, UnavailableError(WORKER_GONE))
            raise
        if result is None:
            for pending in batch:
                _fail(pending, InternalError("the server failed at this request; its log says why"))
            return
        for pending, handled in zip(batch, result, strict=True):
            if not pending.response.done():
                pending.response.set_result(handled)

    async def _in_thread(self, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _start(self) -> None:
        connection, worker_end = _SPAWN.Pipe()
        config = self._archive.config
        metrics = {metric.name: metric.labels for metric in OWN}
        on_gpu = config.deviceType != "cpu"
        self._folder = TemporaryDirectory(prefix="segserve-model-")
        process = _SPAWN.Process(
            target=run_worker,
            args=(
                worker_end,
                str(self._archive.path),
                self._folder.name,
                self._index,
                on_gpu,
                metrics,
            ),
        )
        process.start()
        worker_end.close()  # so that the end of the process ends the connection
        self._process, self._connection = process, connection
        loaded = self._receive("startupTimeout", config.startupTimeout)
        if loaded.error is not None:
            raise WorkerLostError(loaded.error)

    def _exchange(self, requests: Sequence[Received]) -> BatchResult:
        assert self._connection is not None  # noqa: S101 - run() starts the process first
        try:
            self._connection.send(requests)
        except OSError as error:
            raise WorkerLostError("the process died") from error
        result: BatchResult = self._receive("responseTimeout", self._archive.config.responseTimeout)
        return result

    def _receive(self, setting: str, timeout_s: float) -> Any:  # noqa: ANN401 - any message
        assert self._connection is not None  # noqa: S101
        deadline_s = time.monotonic() + timeout_s
        try:
            while time.monotonic() < deadline_s and not self._closed:
                if self._connection.poll(min(_POLL_S, timeout_s)):
                    return self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerLostError("the process died") from error
        raise WorkerLostError(f"the process took longer than {setting}, {timeout_s:g} s")

    def _kill(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()


def _fail(pending: PendingRequest, error: Exception) -> None:
    if not pending.response.done():
        pending.response.set_exception(error)
