"""Segments images with a server or in this process, in parallel; writes one file at a time."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from ..client import (
    AuthenticationError,
    ClassRow,
    MalformedResponseError,
    ResponseError,
    Segmentation,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)
from ..runtime.encode.mask import encode_jpeg
from ..runtime.errors import BadOptionError
from ..runtime.files import write_whole
from .errors import Interrupts, StoppedError, code_and_reason, concerns_one_name, printable
from .results import encode_result
from .sources import Source
from .target import FailureLog, Layout

Task = TypeVar("Task")
Result = TypeVar("Result")

OUTAGE_AFTER = 3  # server failures, with no success in between, end a run

_OUTAGE_STATUS = (502, 503, 504)
_NOT_OUR_SERVER = (401, 403, 404, 405)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one image.

    Attributes:
        files: the result and, if requested, the overlay; empty if the image failed.
        classes: the classes of an image that this run has segmented.
        code, message: of a failed image, see `code_and_reason`; else empty.
        is_skipped: an earlier run computed the image.
    """

    source: Source
    files: tuple[str, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    code: str = ""
    message: str = ""
    is_skipped: bool = False


_Encoded = tuple[dict[str, bytes], tuple[ClassRow, ...]]
"""The contents of one image's files by path, not yet written, and its classes."""


@dataclass
class Run:
    """The work of one command, and its progress.

    Args:
        segment: segments the content of an image file; called from `workers` threads concurrently.
        report: receives the outcome of every image, in this thread.
        force: overwrite existing results.
        retry_failed: compute images again that failed in an earlier run.
        computes_here: whether `segment` runs torch in this process.

    Attributes:
        failed: the number of failed images, those of earlier runs included.
    """

    sources: Sequence[Source]
    layout: Layout
    segment: Callable[[bytes], Segmentation]
    workers: int
    report: Callable[[Outcome], None]
    force: bool = False
    retry_failed: bool = False
    computes_here: bool = False
    done: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    _outage: list[tuple[Source, Exception]] = field(default_factory=list, init=False)

    @property
    def left(self) -> int:
        """The number of images without an outcome, because the run ended early."""
        return len(self.sources) - self.done - self.skipped - self.failed

    def finish(self) -> None:
        """Runs until all images are done, skipped or failed. All files are complete at any end.

        Raises:
            StoppedError: the server rejects every request, or results cannot be written.
            InterruptedRunError: the process received SIGINT or SIGTERM.
        """
        began_s = time.perf_counter()
        try:
            with Interrupts() as interrupts:
                for source, result in parallel_results(
                    self._compute,
                    self._unfinished(interrupts),
                    self.workers,
                    interrupts,
                    awaits_threads=self.computes_here,
                ):
                    self._take(source, result)
            if self._outage:
                self._end_outage(is_over=self.done > 0)
        finally:
            self.seconds = time.perf_counter() - began_s

    def _unfinished(self, interrupts: Interrupts) -> Iterator[Source]:
        log = FailureLog(self.layout.folder)
        if self.force or self.retry_failed:
            log.clear()
        failures = log.read()
        for source in self.sources:
            interrupts.check()
            if not self.force and not self.layout.missing(source):
                files = tuple(self.layout.files(source))
                self._count(Outcome(source, files, is_skipped=True))
            elif failure := failures.get(os.path.abspath(source.location)):
                code, message = failure
                self._count(Outcome(source, code=code, message=message, is_skipped=True))
            else:
                yield source

    def _compute(self, source: Source) -> _Encoded:
        """Reads, segments and encodes an image, in a worker thread. Does not write."""
        content = sys.stdin.buffer.read() if source.is_stdin else Path(source.location).read_bytes()
        segmentation = self.segment(content)
        paths = self.layout.files(source) if self.force else self.layout.missing(source)
        files = {
            path: encode_result(segmentation, source, self.layout.format)
            if path == self.layout.result(source)
            else encode_jpeg(segmentation.overlay())
            for path in paths
        }
        return files, segmentation.classes

    def _take(self, source: Source, result: _Encoded | Exception) -> None:
        if not isinstance(result, Exception):
            self._end_outage(is_over=True)
            self._write(source, *result)
        elif _is_outage(result):
            self._outage.append((source, result))
            if len(self._outage) >= OUTAGE_AFTER:
                self._end_outage(is_over=False)
        elif _affects_all(result):
            raise StoppedError(code_and_reason(result)[1]) from result
        else:
            self._fail(source, *code_and_reason(result))

    def _write(
        self, source: Source, files: dict[str, bytes], classes: tuple[ClassRow, ...]
    ) -> None:
        for path, content in files.items():
            try:
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                write_whole(path, content)
            except OSError as error:
                reason = f"{printable(path)}: cannot be written: {error.strerror}"
                if not concerns_one_name(error):
                    raise StoppedError(reason) from error
                self._fail(source, "file", reason)
                return
        self._count(Outcome(source, tuple(self.layout.files(source)), classes))

    def _fail(self, source: Source, code: str, message: str) -> None:
        """Records the failure of an image itself. Only `retry_failed` computes it again."""
        folder = self.layout.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not source.is_stdin:
                FailureLog(folder).add(source, code, message)
        except OSError as error:
            reason = f"{printable(str(folder))}: cannot be written: {error.strerror}"
            raise StoppedError(reason) from error
        self._count(Outcome(source, code=code, message=message))

    def _end_outage(self, *, is_over: bool) -> None:
        """Ends an outage of the server. If it is over, its images count as failed until the next
        run; if not, the run ends.
        """
        outage, self._outage = self._outage, []
        for source, error in outage:
            code, reason = code_and_reason(error)
            if not is_over:
                raise StoppedError(reason) from error
            self._count(Outcome(source, code=code, message=reason))

    def _count(self, outcome: Outcome) -> None:
        if outcome.message:
            self.failed += 1
        elif outcome.is_skipped:
            self.skipped += 1
        else:
            self.done += 1
        self.report(outcome)


def _is_outage(error: Exception) -> bool:
    """Whether the server caused the error. Such an error may be temporary."""
    if isinstance(error, ResponseError):
        return error.status in _OUTAGE_STATUS
    return isinstance(error, UnreachableError | TimedOutError | MalformedResponseError)


def _affects_all(error: Exception) -> bool:
    """Whether every other image would fail for the same reason."""
    if isinstance(error, AuthenticationError | UnknownModelError | BadOptionError):
        return True
    return isinstance(error, ResponseError) and (
        error.code == BadOptionError.code
        or error.status in _NOT_OUR_SERVER
        or 300 <= error.status < 400
    )


def parallel_results(
    work: Callable[[Task], Result],
    tasks: Iterator[Task],
    workers: int,
    interrupts: Interrupts,
    *,
    awaits_threads: bool = False,
) -> Iterator[tuple[Task, Result | Exception]]:
    """Calls `work` for every task, in `workers` threads. Yields every task with its result, or with
    the exception that it raised, in order of completion. At most two tasks per thread are pending.

    Args:
        work: must not write or print, so that a task can be dropped when the run ends.
        interrupts: a signal raises `InterruptedRunError`, only between results.
        awaits_threads: at the end, let each thread finish its current task. Python must not exit
            while a thread computes with torch.
    """
    todo: SimpleQueue[Task | None] = SimpleQueue()
    done: SimpleQueue[tuple[Task, Result | Exception]] = SimpleQueue()
    threads = [
        threading.Thread(target=_work_off, args=(work, todo, done), daemon=True)
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        pending = 0
        while True:
            for task in islice(tasks, 2 * workers - pending):
                todo.put(task)
                pending += 1
            if not pending:
                break
            with interrupts.immediate():
                ended = done.get()
            pending -= 1
            yield ended
        interrupts.check()
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        for _ in threads:
            todo.put(None)
        for thread in threads if awaits_threads else ():
            thread.join()


def _work_off(
    work: Callable[[Task], Result],
    todo: "SimpleQueue[Task | None]",
    done: "SimpleQueue[tuple[Task, Result | Exception]]",
) -> None:
    while (task := todo.get()) is not None:
        try:
            result: Result | Exception = work(task)
        except Exception as error:  # the consumer of the results handles it
            result = error
        done.put((task, result))
