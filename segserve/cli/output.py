"""Writes to standard output and standard error, and ends a command cleanly if they are not
writable.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO

from typer.core import TyperGroup

# A shell's exit status for a command that a signal ended is 128 + the signal's number.
SIGNALLED = 128

_PIPE_GONE = SIGNALLED + signal.SIGPIPE


class OutputError(Exception):
    """Standard output is not writable. The message is one line of text; `status` is the exit
    status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Commands(TyperGroup):
    """Commands that print no traceback if their output is not writable."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in the base class
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            _say(f"segserve: {reason_of(error)}")
            drop(sys.stdout)
            sys.exit(1)
        except SystemExit as end:
            status = _flushed(tells=not end.code)  # a failed command has already reported its error
            end.code = end.code or status
            raise


def write_output(content: bytes) -> None:
    """Writes to standard output and flushes it.

    Raises:
        OutputError: standard output is closed, its reader has ended, or its disk is full.
    """
    check_output()
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError as error:
        drop(sys.stdout)
        raise OutputError("nobody reads standard output any more", _PIPE_GONE) from error
    except OSError as error:
        drop(sys.stdout)
        raise OutputError(f"standard output cannot be written: {error.strerror}", 1) from error


def check_output() -> None:
    """Checks that standard output is open.

    Raises:
        OutputError: the command was started without standard output.
    """
    if sys.stdout is None:  # Python's value for a closed descriptor
        raise OutputError("standard output is closed: redirect it to a file", 1)


def drop(stream: TextIO | None) -> None:
    """Redirects a stream to the null device. Else Python would flush it again at exit, and report
    another error.
    """
    if stream is None:
        return
    with suppress(OSError, ValueError):  # not a file: nothing to redirect
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def reason_of(error: BaseException) -> str:
    """The message of an error. For an OSError: the file and the reason, without Python's error
    number.
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename if error.filename2 is None else error.filename2
    return error.strerror if name is None else f"{name}: {error.strerror}"


def _flushed(*, tells: bool) -> int:
    """Flushes the streams. Returns the exit status of a command that otherwise succeeded."""
    status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            drop(stream)
            status = _PIPE_GONE
        except OSError as error:
            drop(stream)
            if tells:
                _say(f"segserve: {reason_of(error)}")
            status = 1
    return status


def _say(line: str) -> None:
    with suppress(OSError, AttributeError):  # standard error may be closed too
        sys.stderr.write(f"{line}\n")
