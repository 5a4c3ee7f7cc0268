"""What the commands share: the application, and the output of results, errors and progress."""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from .. import __version__
from ..bulk.storage import printable
from ..resources import model_names

SIGNALLED = 128  # plus a signal's number: a shell's exit status for a command that it ended
_PIPE_GONE = SIGNALLED + signal.SIGPIPE

_EXTRAS = {
    "page": "gradio",
    "ray": "ray pyarrow",
    "train": "jinja2 scipy tensorboard torchmetrics",
    "export": "onnx onnxruntime",
    "onnx": "openvino",
    "serve": "anyio cryptography model_archiver prometheus_client python_multipart safetensors "
    "starlette timm torch torchvision ts uvicorn",
}
"""By extra of pyproject.toml, the packages that it adds."""


class OutputError(Exception):
    """Standard output is not writable. The command ends with the exit status `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Commands(TyperGroup):
    """Commands that print no traceback if their output is not writable or an extra is missing."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - as in the base class
        super().__init__(**kwargs)
        for command in self.commands.values():  # rich keeps the line breaks of docstrings
            paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
            command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in the base class
        try:
            return super().main(*args, **kwargs)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            for extra, packages in _EXTRAS.items():
                if package in packages.split():
                    install = f"pip install 'segserve[{extra}]'"
                    _write_error(f"this needs {package}, not installed: {install}")
                    sys.exit(1)
            raise
        except OSError as error:
            _write_error(reason_of(error))
            if sys.stdout is not None:
                _drop(sys.stdout)
            sys.exit(1)
        except SystemExit as end:
            # A failed command has already reported its error.
            status = _flush(prints_errors=not end.code)
            end.code = end.code or status
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Train, measure, pack and serve DeepLabV3 segmentation models.",
)
console = Console()


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"segserve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None: ...


# The groups of commands in `segserve --help`.
USE, MAKE = "Use a model", "Make and measure models"


ModelArgument = Annotated[
    str,
    typer.Argument(help="a model folder, or the name of one in model/", autocompletion=model_names),
]

TrustFlag = Annotated[
    Path | None,
    typer.Option(
        envvar="SEGSERVE_TRUST",
        metavar="PUBLIC_KEY",
        help="take no archive but those signed by a key of this file",
    ),
]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Converts an error in a model, a server, a file or the data to one line and exit status 1."""
    from ..bulk.storage import BulkError
    from ..client import ClientError
    from ..engines import ServerError
    from ..runtime.errors import ModelError, SegserveError

    own_errors = ModelError, ServerError, ClientError, SegserveError, BulkError
    try:
        yield
    except OutputError as error:
        print_error(str(error))
        raise typer.Exit(error.status) from error
    except (*own_errors, ArithmeticError, OSError, ValueError) as error:
        print_error(*getattr(error, "lines", (reason_of(error),)))
        raise typer.Exit(1) from error


def figures_table(first: str, *figures: str, **options: Any) -> Table:  # noqa: ANN401 - of Table
    """A table with a column of text, and columns of figures, which are aligned on the right."""
    return Table(first, *(Column(heading, justify="right") for heading in figures), **options)


def print_error(message: str, *details: str) -> None:
    """Prints one line to stderr, in red on a terminal, and one more line for each detail."""
    for line in (f"segserve: {message}", *(f"  {detail}" for detail in details)):
        Console(stderr=True).print(
            printable(line), style="red", markup=False, highlight=False, soft_wrap=True
        )


def print_plain(line: str) -> None:
    """Prints a line that can be copied: without wrapping and without colours."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def model_folder(model: str) -> Path:
    """The folder with the weights of a model, see `fetch.model_named`, whose import is slow."""
    from ..fetch import model_named

    return model_named(model)


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def progress_bar(unit: str, *, shown: bool = True) -> Progress:
    columns = (
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(),
        _SpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


@contextmanager
def image_count(total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar; the function sets the number of finished images."""
    with progress_bar("image", shown=shown) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.update(task, completed=count)


def write_output(content: bytes) -> None:
    """Writes to standard output and flushes it. Raises OutputError if it is closed, its reader has
    ended, or its disk is full.
    """
    check_output()
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise OutputError("the reader of standard output has ended", _PIPE_GONE) from error
        raise OutputError(f"standard output cannot be written: {error.strerror}", 1) from error


def check_output() -> None:
    """Raises OutputError if the command was started without standard output."""
    if sys.stdout is None:  # Python's value for a closed descriptor
        raise OutputError("standard output is closed: redirect it to a file", 1)


def _drop(stream: TextIO) -> None:
    """Redirects a stream to the null device. Else Python would report another error at exit."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as null:
        os.dup2(null.fileno(), stream.fileno())  # OSError: not a file, nothing to redirect


def reason_of(error: BaseException) -> str:
    """The message of an error; for an OSError the file and the reason, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename if error.filename2 is None else error.filename2
    return error.strerror if name is None else f"{name}: {error.strerror}"


def _flush(*, prints_errors: bool) -> int:
    """Flushes the streams. Returns the exit status of a command that otherwise succeeded."""
    status = 0
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream)
            status = _PIPE_GONE
        except OSError as error:
            _drop(stream)
            if prints_errors:
                _write_error(reason_of(error))
            status = 1
    return status


def _write_error(message: str) -> None:
    with suppress(OSError, AttributeError):  # standard error may be closed too
        sys.stderr.write(f"segserve: {message}\n")
