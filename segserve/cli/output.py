"""Standard output and standard error, and how a command ends where nothing can be written to them."""

import os
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO

from typer.core import TyperGroup

# What a shell adds to the number of the signal that ended a command.
SIGNALLED = 128

_PIPE_GONE = SIGNALLED + signal.SIGPIPE


class OutputError(Exception):
    """Standard output cannot be written to. The message is one line, `status` what the command ends with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Commands(TyperGroup):
    """Commands of which none ends with a traceback because its output cannot be written."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the base class has them
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            _say(f"segserve: {reason_of(error)}")
            drop(sys.stdout)
            sys.exit(1)
        except SystemExit as end:
            status = _flushed(tells=not end.code)  # a command that failed has told why
            end.code = end.code or status
            raise


def write_output(content: bytes) -> None:
    """Writes to standard output, at once.

    Raises:
        OutputError: it is closed, nobody reads it any more, or its disk is full.
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
    """That there is a standard output.

    Raises:
        OutputError: the command was started without one.
    """
    if sys.stdout is None:  # what Python makes of a closed descriptor
        raise OutputError("standard output is closed: redirect it to a file", 1)


def drop(stream: TextIO | None) -> None:
    """Leads to nowhere what a stream still holds: at its end Python would try to write it once more, and complain."""
    if stream is None:
        return
    with suppress(OSError, ValueError):  # one that is no file has nothing to be led away
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def reason_of(error: BaseException) -> str:
    """What is wrong in words, and with which file, without the number that Python puts before them."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename if error.filename2 is None else error.filename2
    return error.strerror if name is None else f"{name}: {error.strerror}"


def _flushed(*, tells: bool) -> int:
    """The exit status that writing what is left in the streams makes of a success."""
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
    with suppress(OSError, AttributeError):  # to whom, if standard error is gone as well
        sys.stderr.write(f"{line}\n")
