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

_SERVE = """
    anyio cryptography model_archiver prometheus_client python_multipart safetensors starlette timm
    torch torchvision ts uvicorn
"""
_EXTRAS = {
    "gradio": "page",
    **dict.fromkeys(("ray", "pyarrow"), "ray"),
    **dict.fromkeys(("jinja2", "scipy", "tensorboard", "torchmetrics"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime"), "export"),
    "openvino": "onnx",
    **dict.fromkeys(_SERVE.split(), "serve"),
}
"""By package, the extra of pyproject.toml that installs it."""


class OutputError(Exception):
    """Standard output is not writable. The message is one line of text; `status` is the exit
    status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Commands(TyperGroup):
    """Commands that print no traceback if their output is not writable or an extra is missing."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in the base class
        try:
            return super().main(*args, **kwargs)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            extra = f"'segserve[{_EXTRAS[package]}]'"
            _print_error(f"segserve: this needs {package}, not installed: pip install {extra}")
            sys.exit(1)
        except OSError as error:
            _print_error(f"segserve: {reason_of(error)}")
            drop(sys.stdout)
            sys.exit(1)
        except SystemExit as end:
            # A failed command has already reported its error.
            status = _flush(prints_errors=not end.code)
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
        raise OutputError("the reader of standard output has ended", _PIPE_GONE) from error
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


def _flush(*, prints_errors: bool) -> int:
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
            if prints_errors:
                _print_error(f"segserve: {reason_of(error)}")
            status = 1
    return status


def _print_error(line: str) -> None:
    with suppress(OSError, AttributeError):  # standard error may be closed too
        sys.stderr.write(f"{line}\n")
