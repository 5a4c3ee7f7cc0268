"""Segments images with a server or in this process, in parallel; writes one file at a time."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from types import FrameType
from typing import Any, Self, TypeVar

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
from .results import Layout, RunLog, code_and_reason, concerns_one_name, encode_result
from .sources import Source
from .storage import BulkError, Storage, absolute, printable

Task = TypeVar("Task")
Result = TypeVar("Result")

OUTAGE_AFTER = 3  # server failures in a row end a run

_OUTAGE_STATUS = (502, 503, 504)
_NOT_OUR_SERVER = (401, 403, 404, 405)


class StoppedError(BulkError):
    """The cause would make every other image fail too, so the run ends."""

    exit_status = 1


class InterruptedRunError(StoppedError):
    """The signal `signal_number` ended the run. Finished results are kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_status = 128 + signal_number  # as a shell reports it


class Interrupts:
    """Handles SIGINT and SIGTERM within a context, in the main thread. A signal is only recorded,
    because an exception in the middle of a write would do harm. `check` raises it; within
    `immediate`, the signal handler raises it. Later signals are ignored, also after the context,
    so that a second Ctrl-C does not change the command's last message.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._is_immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if self._number is None else signal.SIG_IGN)

    def install(self) -> None:
        """Sets the handlers. Call it again after a library has set its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raises InterruptedRunError if the process has received a signal. Call it regularly."""
        if self._number is not None:
            raise InterruptedRunError(self._number)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """A context in which a signal raises `InterruptedRunError` at once."""
        self._is_immediate = True
        try:
            self.check()
            yield
        finally:
            self._is_immediate = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is None:
            self._number = number
            if self._is_immediate:
                self.check()


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
    _outages: int = field(default=0, init=False)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of images by outcome; those left have none, because the run ended early."""
        counts = {"segmented": self.done, "skipped": self.skipped, "failed": self.failed}
        return counts | {"left": len(self.sources) - sum(counts.values())}

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
        finally:
            self.seconds = time.perf_counter() - began_s

    def _unfinished(self, interrupts: Interrupts) -> Iterator[Source]:
        log = RunLog(self.layout.folder)
        if self.force or self.retry_failed:
            log.forget_failures()
        failures = log.failures()
        for source in self.sources:
            interrupts.check()
            if not self.force and not self.layout.missing(source):
                files = tuple(self.layout.files(source))
                self._count(Outcome(source, files, is_skipped=True))
            elif failure := failures.get(absolute(source.location)):
                code, message = failure
                self._count(Outcome(source, code=code, message=message, is_skipped=True))
            else:
                yield source

    def _compute(self, source: Source) -> _Encoded:
        """Reads, segments and encodes an image, in a worker thread. Does not write."""
        segmentation = self.segment(Storage.at(source.location).read_bytes())
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
            self._outages = 0
            self._write(source, *result)
            return
        code, reason = code_and_reason(result)
        is_outage = _is_outage(result)
        self._outages += is_outage
        is_absent = isinstance(result, UnreachableError) and not self.done
        if is_absent or self._outages >= OUTAGE_AFTER or _affects_all(result):
            raise StoppedError(reason) from result
        self._fail(source, code, reason, is_recorded=not is_outage)

    def _write(
        self, source: Source, files: dict[str, bytes], classes: tuple[ClassRow, ...]
    ) -> None:
        log = RunLog(self.layout.folder)
        for path, content in files.items():
            try:
                log.add_result(source, path)  # first: no file is without a record
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                write_whole(path, content)
            except OSError as error:
                reason = f"{printable(path)}: cannot be written: {error.strerror}"
                if not concerns_one_name(error):
                    raise StoppedError(reason) from error
                self._fail(source, "file", reason)
                return
        self._count(Outcome(source, tuple(self.layout.files(source)), classes))

    def _fail(self, source: Source, code: str, message: str, *, is_recorded: bool = True) -> None:
        """Counts a failed image. If it is recorded, only `retry_failed` computes it again."""
        folder = self.layout.folder
        try:
            if is_recorded:
                RunLog(folder).add_failure(source, code, message)
        except OSError as error:
            reason = f"{printable(str(folder))}: cannot be written: {error.strerror}"
            raise StoppedError(reason) from error
        self._count(Outcome(source, code=code, message=message))

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
    is_over = threading.Event()

    def work_off() -> None:
        while (task := todo.get()) is not None and not is_over.is_set():
            try:
                result: Result | Exception = work(task)
            except Exception as error:  # the consumer of the results handles it
                result = error
            done.put((task, result))

    threads = [threading.Thread(target=work_off, daemon=True) for _ in range(workers)]
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
        is_over.set()
        for _ in threads:
            todo.put(None)
        for thread in threads if awaits_threads else ():
            thread.join()
