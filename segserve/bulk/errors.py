"""The errors of bulk runs, and the signals that become one. Every message is one line of text."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST, EILSEQ, EINVAL, EISDIR, ENAMETOOLONG, ENOTDIR
from types import FrameType
from typing import Any, ClassVar, Self


class BulkError(Exception):
    """Base class of these errors: sources or results that cannot be used."""

    code: ClassVar[str] = "refused"
    """The error code in the table of a batch job, if a single image has this error."""


class StoppedError(BulkError):
    """The cause would make every other image fail too, so the run ends."""


class InterruptedRunError(BulkError):
    """The signal `signal_number` ended the run. Finished results are kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.signal_number = signal_number


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handles SIGINT and SIGTERM within a context, in the main thread. A signal is only recorded,
    because an exception in the middle of a write would do harm. `check` raises it; within
    `immediate`, the signal handler raises it. Later signals are ignored.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._is_immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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


_NAME_ERRORS = (EEXIST, EILSEQ, EINVAL, EISDIR, ENAMETOOLONG, ENOTDIR)


def concerns_one_name(error: OSError) -> bool:
    """Whether only the name of this file causes the error. Others affect the next file too."""
    return error.errno in _NAME_ERRORS


def code_and_reason(error: Exception) -> tuple[str, str]:
    """The error code of a failed image, and one line of text. The code is that of the error
    response, `file`, `server`, or `internal_error`.
    """
    from ..client import ClientError, ResponseError
    from ..runtime.errors import SegserveError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ResponseError):
        return error.code, error.message
    if isinstance(error, SegserveError | BulkError):
        return error.code, text
    if isinstance(error, ClientError):
        return "server", text
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else text[:400]
        return "file", f"cannot be read: {reason}"
    return "internal_error", f"{type(error).__name__}: {text[:400]}"


def printable(path: str) -> str:
    """A path as one line of text. Control characters and undecodable bytes are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path
    )
