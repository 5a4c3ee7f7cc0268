"""One run of a job: a pool of workers processes the unfinished blocks until the job is done,
stopped or interrupted.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol

import numpy as np

from ..runtime.record import ModelRecord
from ..segment.errors import InterruptedRunError, SegmentError, StoppedError
from ..segment.sources import printable
from .cluster import Machines, joined_ray, machines_of
from .formats import Format
from .job import SUMMARY, Job, apart, check_apart, claim_target
from .listing import Block, blocks_of, extend_listing, unfinished
from .model import ArchiveFacts, check_archive
from .sources import images_of
from .storage import told_by_location
from .table import Summary, summarize

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Pool:
    """The pool: `workers` on the Ray cluster at `address`. By default, one worker per GPU or core
    of this machine.
    """

    workers: int | None = None
    address: str | None = None


class Watcher(Protocol):
    """Receives the progress of a run."""

    def began(self, images: int, done: int) -> None:
        """Called once, with the numbers of the job's images and of the images that earlier runs
        have done.
        """

    def advanced(self, images: int, failed: int) -> None:
        """Called after every finished block, with its numbers of images and of failed images."""

    def ended(self, summary: Summary) -> None:
        """Called once at the end, even if the run ends early, with the summary of the table."""


class _Unwatched:
    def began(self, images: int, done: int) -> None: ...

    def advanced(self, images: int, failed: int) -> None: ...

    def ended(self, summary: Summary) -> None: ...


def run_batch(
    source: str,
    job: Job,
    archive: Path,
    *,
    column: str = "path",
    pool: Pool = Pool(),
    max_failures: int | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Summary:
    """Segments all images of a source that no earlier run has segmented.

    Finished results are always kept. The same call resumes the job.

    Args:
        source, column: see `images_of`.
        max_failures: stop if more images than this fail in this run.
        overwrite: remove the target's previous results and start from the beginning.

    Raises:
        ModelError: the file is not an archive, or its weights do not match their record.
        BadOptionError: the model does not support the options.
        SegmentError: the source or the target is invalid.
        StoppedError: too many images failed, results cannot be written, or the cluster is
            unreachable.
        InterruptedRunError: the process received SIGINT or SIGTERM.
    """
    with _signals_raised() as raise_signals:
        facts = check_archive(archive, job.options)
        check_apart(source, job.target)
        _check_not_empty(source, column)  # before the manifest is written
        claim_target(job, _manifest(source, job, facts, column), overwrite=overwrite)
        _list(source, column, job)
        run = _Run(job, facts.record, watcher or _Unwatched(), max_failures)
        return run.finish(archive, pool, raise_signals)


def _manifest(source: str, job: Job, facts: ArchiveFacts, column: str) -> dict[str, object]:
    """Everything that the results depend on."""
    return {
        "archive_sha256": facts.sha256,
        "model": facts.record.name,
        "model_version": facts.record.version,
        "source": source if "://" in source else str(Path(source).absolute()),
        "column": column,
        "format": job.format,
        **{name: job.options.get(name) for name in ("mode", "tta", "classes", "threshold")},
    }


def _check_not_empty(source: str, column: str) -> None:
    if next(images_of(source, column=column), None) is None:
        raise SegmentError(f"{printable(source)}: holds no images; nothing to segment")


def _list(source: str, column: str, job: Job) -> None:
    with told_by_location(job.target):
        extend_listing(
            job.storage,
            apart(images_of(source, column=column), job.target),
            distinct_stems=job.format is not Format.RLE,
        )


class _Run:
    def __init__(
        self, job: Job, record: ModelRecord, watcher: Watcher, max_failures: int | None
    ) -> None:
        self._job = job
        self._record = record
        self._watcher = watcher
        self._max_failures = max_failures
        self._done = 0
        self._failed = 0
        self._began_s = float("inf")  # start of the first worker; excludes start-up time
        self._seconds = 0.0

    def finish(self, archive: Path, pool: Pool, raise_signals: Callable[[], None]) -> Summary:
        total = sum(block.images for block in blocks_of(self._job.storage))
        left = unfinished(self._job.storage)
        self._watcher.began(total, total - sum(block.images for block in left))
        try:
            if left:
                with joined_ray(
                    pool.address, cpus=pool.workers, archive_bytes=archive.stat().st_size
                ) as ray:
                    raise_signals()
                    self._work(ray, left, archive, machines_of(ray, pool.workers))
        except BaseException:
            with suppress(OSError):  # the first error is more important
                self._summarize(total)
            raise
        finally:
            with suppress(OSError):
                self._job.storage.sweep()
        return self._summarize(total)

    def _summarize(self, total: int) -> Summary:
        storage = self._job.storage
        summary = summarize(
            storage, self._record, images=total, done=self._done, seconds=self._seconds
        )
        self._watcher.ended(summary)
        storage.write(SUMMARY, json.dumps(summary.as_document(), indent=2).encode())
        return summary

    def _work(self, ray: ModuleType, left: list[Block], archive: Path, machines: Machines) -> None:
        try:
            for done in self._dataset(ray, left, archive, machines).iter_batches(
                batch_size=None, prefetch_batches=0
            ):
                self._take(done)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error.__cause__ or error).split())[-300:]
            raise StoppedError(f"the workers failed: {reason}") from error

    def _dataset(
        self, ray: ModuleType, left: list[Block], archive: Path, machines: Machines
    ) -> Any:  # noqa: ANN401
        from .worker import PoolWorker, Work

        content = ray.put(np.fromfile(archive, np.uint8))
        rows = [
            {"listing": block.listing, "index": block.index, "images": block.images}
            for block in left
        ]
        return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            PoolWorker,
            fn_constructor_args=(Work(self._job, content, machines.device, machines.threads),),
            compute=ray.data.ActorPoolStrategy(
                size=machines.workers, max_tasks_in_flight_per_actor=2
            ),
            batch_size=1,
            num_cpus=machines.cpus_each,
            num_gpus=machines.gpus_each,
        )

    def _take(self, done: dict[str, Any]) -> None:
        stopped = next((reason for reason in done["stopped"] if reason), "")
        if stopped:
            raise StoppedError(stopped)
        images, failed = int(sum(done["images"])), int(sum(done["failed"]))
        self._done += images
        self._failed += failed
        self._began_s = min(self._began_s, *done["began_s"])
        self._seconds = max(0.0, time.time() - self._began_s)
        self._watcher.advanced(images, failed)
        if self._max_failures is not None and self._failed > self._max_failures:
            raise StoppedError(
                f"{self._failed} images have failed, more than the {self._max_failures} of "
                "--max-failures"
            )


@contextmanager
def _signals_raised() -> Iterator[Callable[[], None]]:
    """Converts SIGINT and SIGTERM to an exception. Yields a function that sets the handlers again,
    after Ray's own.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        raise InterruptedRunError(number)

    def set_handlers() -> None:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # only that thread can handle signals
            for number in _SIGNALS:
                signal.signal(number, interrupt)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    set_handlers()
    try:
        yield set_handlers
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
