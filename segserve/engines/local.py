"""The engine `local`: worker processes of the gateway, without Java, TorchServe and Ray.

Each model has one queue, and each worker takes batches from it, as TorchServe's workers do.
"""

import asyncio
import logging
import multiprocessing
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ..runtime.errors import InternalError, OverloadedError, UnavailableError
from ..runtime.metrics import OWN
from ..signing import TrustedKeys
from . import ServerError
from .pool import WORKER_GONE, PoolEngine, queue_full
from .processes import use_new_tmp_dir
from .store import ServedArchive, stored_archives
from .worker import Handled, Received, run_worker

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_STOP_S = 5
_READY_POLL_S = 0.05
_LONGEST_RESTART_DELAY_S = 30


class PendingRequest(NamedTuple):
    received: Received
    response: asyncio.Future[Handled]


class WorkerLostError(Exception):
    """The process of a worker died, or took too long. The message is the reason."""


class LocalEngine(PoolEngine):
    """See `Engine`: `minWorkers` workers of each archive. Create it in a running event loop.

    Of the settings of config.properties, only `job_queue_size` is used.
    """

    def __init__(
        self,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        config: Mapping[str, str],
        trusted: TrustedKeys | None,
    ) -> None:
        stored = stored_archives(archives, run_dir, trusted=trusted)
        super().__init__([_with_queue_size(archive, config) for archive in stored])
        self._tmp_dir = use_new_tmp_dir(run_dir)
        self._failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queues: dict[str, ModelQueue] = {}
        self._workers: dict[str, list[LocalWorker]] = {}
        for name, archive in self._served.items():
            queue = self._queues[name] = ModelQueue(archive.config.jobQueueSize)
            self._workers[name] = [
                LocalWorker(archive, index, queue, self._failure)
                for index in range(archive.config.minWorkers)
            ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, timeout_s: float) -> None:
        self._tasks = [asyncio.create_task(worker.run()) for worker in self._every_worker()]
        ready = asyncio.ensure_future(self._wait_ready())
        outcomes: set[asyncio.Future[Any]] = {ready, self._failure}
        done, _ = await asyncio.wait(
            outcomes, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if self._failure in done:
            raise ServerError(self._failure.result())
        if not done:
            raise ServerError(f"{await self.not_ready_reason()} after {timeout_s:g} s")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = [asyncio.to_thread(worker.close) for worker in self._every_worker()]
        await asyncio.gather(*closing)
        shutil.rmtree(self._tmp_dir, ignore_errors=True)

    async def submit(self, model: str, received: Received) -> Handled:
        return await self._queues[model].put(received)

    async def worker_states(self, model: str) -> Sequence[str]:
        return [worker.status for worker in self._workers[model]]

    def _every_worker(self) -> list["LocalWorker"]:
        return [worker for workers in self._workers.values() for worker in workers]

    async def _wait_ready(self) -> None:
        while await self.not_ready_reason() is not None:
            await asyncio.sleep(_READY_POLL_S)


def _with_queue_size(archive: ServedArchive, config: Mapping[str, str]) -> ServedArchive:
    """The archive, with TorchServe's `job_queue_size` unless its own configuration has a value.

    Raises ServerError: it is not a positive number; an `asyncio.Queue` of size 0 has no limit.
    """
    model_config = archive.config
    if "job_queue_size" not in config or "jobQueueSize" in model_config.model_fields_set:
        return archive
    size = config["job_queue_size"].strip()
    if not re.fullmatch("[1-9][0-9]{0,8}", size):
        raise ServerError(f"job_queue_size must be a positive whole number, got {size!r}")
    return replace(archive, config=model_config.model_copy(update={"jobQueueSize": int(size)}))


class ModelQueue:
    """The requests of one model that wait for a worker."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._queue: asyncio.Queue[PendingRequest] = asyncio.Queue(size)

    async def put(self, received: Received) -> Handled:
        """Waits for the response. Raises OverloadedError: the queue is full."""
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

        Raises WorkerLostError: `died` is done before there is a request.
        """
        first = asyncio.ensure_future(self._queue.get())
        try:
            waiting: set[asyncio.Future[Any]] = {first, died}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()  # does nothing if there is a request
        if not first.done():
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
        self._archive, self._index = archive, index
        self._queue, self._failure = queue, failure
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._folder: TemporaryDirectory[str] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{archive.name}-{index}")

    async def run(self) -> None:
        """Keeps a process running and gives it batches, until the task is cancelled."""
        name, delay_s = self._archive.name, 0.0
        while True:
            try:
                await self._start()
                self.status, delay_s = "READY", 0.0
                await self._handle_batches()
            except Exception as error:  # not only the worker's: a start may meet a full disk
                reason = str(error) or type(error).__name__
                logger.warning("%s, worker %d: %s", name, self._index, reason)
                if self.status == "LOADING":  # ends `LocalEngine.start`, if that still waits
                    _resolve(self._failure, f"the model {name!r} failed to load: {reason}")
                self.status = "LOADING"
                await self._in_thread(self._kill)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s + 1, _LONGEST_RESTART_DELAY_S)

    def close(self) -> None:
        """Ends the process: at once if it waits for a batch, else after a few seconds.

        Call it when the task of `run` is cancelled.
        """
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(_STOP_S)
        self._kill()

    async def _handle_batches(self) -> None:
        config = self._archive.config
        with self._watched() as died:
            while True:
                batch = await self._queue.take(
                    config.batchSize, config.maxBatchDelay / 1000, died=died
                )
                if batch:
                    await self._handle(batch)

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
            result = await self._limited("responseTimeout", self._exchange, requests)
        except Exception:
            for pending in batch:
                _resolve(pending.response, UnavailableError(WORKER_GONE))
            raise
        failed = InternalError("the server failed at this request; its log says why")
        for pending, handled in zip(batch, result or [failed] * len(batch), strict=True):
            _resolve(pending.response, handled)

    async def _limited(self, setting: str, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        """Runs it in the thread for at most the seconds of `setting`, or until it is cancelled.

        Raises WorkerLostError: the process died, or the time is over.
        """
        timeout_s: float = getattr(self._archive.config, setting)
        done = self._in_thread(function, *args)
        try:
            await asyncio.wait([done], timeout=timeout_s)
            if done.done():
                return done.result()
            raise WorkerLostError(f"the process took longer than {setting}, {timeout_s:g} s")
        except (EOFError, ConnectionError) as error:
            raise WorkerLostError("the process died") from error
        finally:
            if not done.done():
                self._hang_up()
                done.cancel()

    def _hang_up(self) -> None:
        """Makes `send` and `recv` fail in the thread. They may wait for a process that is stopped.

        A closed file descriptor would not end them.
        """
        assert self._connection is not None  # noqa: S101 - run() opens it first
        wire = socket.socket(fileno=self._connection.fileno())
        with suppress(OSError):  # the process has just ended
            wire.shutdown(socket.SHUT_RDWR)
        wire.detach()

    def _in_thread(self, function: Callable[..., Any], *args: object) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _start(self) -> None:
        self._connection, worker_end = _SPAWN.Pipe()
        fault: str | None = await self._limited("startupTimeout", self._load, worker_end)
        if fault is not None:
            raise WorkerLostError(fault)

    def _load(self, worker_end: Connection) -> Any:  # noqa: ANN401 - see `run_worker`
        assert self._connection is not None  # noqa: S101
        self._folder = TemporaryDirectory(prefix="segserve-model-", ignore_cleanup_errors=True)
        process = _SPAWN.Process(
            target=run_worker,
            kwargs={
                "connection": worker_end,
                "archive": self._archive.path,
                "folder": Path(self._folder.name),
                "index": self._index,
                "on_gpu": self._archive.config.deviceType != "cpu",
                "metrics": {metric.name: metric.labels for metric in OWN},
            },
        )
        process.start()
        self._process = process
        worker_end.close()  # so that the end of the process ends the connection
        return self._connection.recv()

    def _exchange(self, requests: Sequence[Received]) -> Any:  # noqa: ANN401 - a BatchResult
        assert self._connection is not None  # noqa: S101
        self._connection.send(requests)
        return self._connection.recv()

    def _kill(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()


def _resolve(future: asyncio.Future[Any], outcome: object) -> None:
    """Sets a result or an exception, unless the future is cancelled or has one."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
