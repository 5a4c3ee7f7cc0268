"""Segments all images of one command in parallel, writes the files one at a time, and reports every
outcome.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..client import (
    AuthenticationError,
    ClassRow,
    ClientError,
    MalformedResponseError,
    ResponseError,
    Segmentation,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)
from ..runtime.errors import BadOptionError, SegserveError
from ..runtime.files import write_whole
from .errors import StoppedError
from .flight import Flight
from .folder import concerns_one_name
from .formats import encode_overlay, encode_result
from .layout import Layout
from .sources import Source, printable

OUTAGE_AFTER = 3
"""The number of server failures, with no success in between, that ends a run. The other images
would fail too.
"""

_OUTAGE_STATUS = (502, 503, 504)
_NOT_OUR_SERVER = (401, 403, 404, 405)


@dataclass(frozen=True)
class Done:
    """A segmented image. `files` are the result and, if requested, the overlay."""

    source: Source
    files: tuple[str, ...]
    classes: tuple[ClassRow, ...]


@dataclass(frozen=True)
class Skipped:
    """A skipped image. All of its `files` existed already."""

    source: Source
    files: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """An image that failed. `code` is for programs: the server's code, or `file` for an error of a
    local file.
    """

    source: Source
    code: str
    message: str


Outcome = Done | Skipped | Failed


@dataclass(frozen=True)
class _Answered:
    """The contents of one image's files, not yet written."""

    contents: dict[str, bytes]
    classes: tuple[ClassRow, ...]


@dataclass
class Run:
    """The work of one command, and its progress.

    Args:
        ask: segments the content of an image file; called from `workers` threads concurrently.
        force: overwrite existing results.
        report: receives the outcome of every image, in this thread.
        computes_here: whether `ask` runs torch in this process.
    """

    sources: Sequence[Source]
    layout: Layout
    ask: Callable[[bytes], Segmentation]
    workers: int
    force: bool
    report: Callable[[Outcome], None]
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
        """Runs until all images are done, skipped or failed.

        Raises:
            StoppedError: the server is unreachable or rejects every request, or results cannot be
                written.
            InterruptedRunError: the process received SIGINT or SIGTERM. All files are complete.
        """
        began_s = time.perf_counter()
        flight = Flight(self._answer, self.workers, self.computes_here)
        try:
            for source, answer in flight.results(self._unfinished(flight)):
                self._take(source, answer)
            if self._outage:
                self._end_outage(is_over=self.done > 0)
        finally:
            self.seconds = time.perf_counter() - began_s

    def _unfinished(self, flight: Flight[Source, _Answered]) -> Iterator[Source]:
        for source in self.sources:
            flight.check_signals()
            if self.force or self.layout.missing(source):
                yield source
            else:
                self._count(Skipped(source, tuple(self.layout.files(source))))

    def _answer(self, source: Source) -> _Answered:
        """Reads, segments and encodes an image, in a worker thread. Does not write."""
        segmentation = self.ask(read_source(source))
        wanted = self.layout.files(source) if self.force else self.layout.missing(source)
        return _Answered(
            {path: self._encoded(segmentation, source, path) for path in wanted},
            segmentation.classes,
        )

    def _encoded(self, segmentation: Segmentation, source: Source, path: str) -> bytes:
        if path == self.layout.result(source):
            return encode_result(segmentation, source, self.layout.format)
        return encode_overlay(segmentation)

    def _take(self, source: Source, answer: _Answered | Exception) -> None:
        if isinstance(answer, _Answered):
            self._end_outage(is_over=True)
            self._write(source, answer)
        elif _is_outage(answer):
            self._outage.append((source, answer))
            if len(self._outage) >= OUTAGE_AFTER:
                self._end_outage(is_over=False)
        elif _meets_all(answer):
            raise StoppedError(_reason(answer)) from answer
        else:
            self._count(Failed(source, _code(answer), _reason(answer)))

    def _write(self, source: Source, answer: _Answered) -> None:
        for path, content in answer.contents.items():
            try:
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                write_whole(path, content)
            except OSError as error:
                reason = f"{printable(path)}: cannot be written: {error.strerror}"
                if not concerns_one_name(error):
                    raise StoppedError(reason) from error
                self._count(Failed(source, "file", reason))
                return
        self._count(Done(source, tuple(self.layout.files(source)), answer.classes))

    def _end_outage(self, *, is_over: bool) -> None:
        """Ends an outage of the server. If it is over, its images count as failed; if not, the run
        ends.
        """
        outage, self._outage = self._outage, []
        if outage and not is_over:
            raise StoppedError(_reason(outage[-1][1])) from outage[-1][1]
        for source, error in outage:
            self._count(Failed(source, _code(error), _reason(error)))

    def _count(self, outcome: Outcome) -> None:
        self.done += isinstance(outcome, Done)
        self.skipped += isinstance(outcome, Skipped)
        self.failed += isinstance(outcome, Failed)
        self.report(outcome)


def read_source(source: Source) -> bytes:
    """Reads the image file.

    Raises:
        OSError: the file cannot be read.
    """
    if source.is_stdin:
        return sys.stdin.buffer.read()
    with open(source.path, "rb") as file:
        return file.read()


def _is_outage(error: Exception) -> bool:
    """Whether the server caused the error. Such an error may be temporary."""
    if isinstance(error, ResponseError):
        return error.status in _OUTAGE_STATUS
    return isinstance(error, UnreachableError | TimedOutError | MalformedResponseError)


def _meets_all(error: Exception) -> bool:
    """Whether every other image would fail for the same reason."""
    if (
        isinstance(error, AuthenticationError | UnknownModelError)
        or _code(error) == BadOptionError.code
    ):
        return True
    return isinstance(error, ResponseError) and (
        error.status in _NOT_OUR_SERVER or 300 <= error.status < 400
    )


def _code(error: Exception) -> str:
    if isinstance(error, ResponseError | SegserveError):
        return error.code
    if isinstance(error, OSError):
        return "file"
    return "server" if isinstance(error, ClientError) else "internal_error"


def _reason(error: Exception) -> str:
    if isinstance(error, ResponseError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        text
        if isinstance(error, ClientError | SegserveError)
        else f"{type(error).__name__}: {text}"
    )
