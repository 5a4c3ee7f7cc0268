"""What the commands share: the application, the console, and the output of errors and progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import requests
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..bulk.errors import printable
from ..resources import resource
from .output import Commands, OutputError, reason_of

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Train, measure, pack and serve DeepLabV3 segmentation models.",
)
console = Console()

# The groups of commands in `segserve --help`.
USE, MAKE = "Use a model", "Make and measure models"


def model_names(incomplete: str) -> list[str]:
    """The repository's models whose names start with `incomplete`, for shell completion."""
    try:
        records = sorted(resource("model").glob("*/model.yaml"))
    except FileNotFoundError:  # installed without the repository; completion must not fail
        return []
    return [path.parent.name for path in records if path.parent.name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(help="a model folder, or the name of one in model/", autocompletion=model_names),
]

RuntimeFlag = Annotated[
    Literal["torch", "onnx"] | None,
    typer.Option(
        help="what computes the network; onnx needs no PyTorch, and computes on the CPU. By "
        "default onnx on a CPU, if the model has a network.onnx"
    ),
]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Converts an error in a model, a server, a file or the data to one line of output and exit
    status 1.
    """
    from ..bulk.errors import BulkError
    from ..client import ClientError
    from ..engines.errors import ServerError
    from ..runtime.errors import ModelError, SegserveError

    try:
        yield
    except OutputError as error:
        print_error(str(error))
        raise typer.Exit(error.status) from error
    except (
        ModelError,
        ServerError,
        ClientError,
        SegserveError,
        BulkError,
        ArithmeticError,
        OSError,
        ValueError,
        requests.RequestException,
    ) as error:
        first, *others = getattr(error, "lines", (reason_of(error),))
        print_error(first)
        for line in others:
            print_line(f"  {line}")
        raise typer.Exit(1) from error


def print_error(message: str) -> None:
    """Prints one line to stderr, in red on a terminal."""
    print_line(f"segserve: {message}")


def print_line(message: str) -> None:
    """As `print_error`, without the name of the program."""
    line = printable(message)
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def print_plain(line: str) -> None:
    """Prints a line that can be copied: without wrapping and without colours."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def model_source(model: str) -> Path:
    """The folder of a model, with or without weights.

    Raises:
        FileNotFoundError: there is no such model, or the package was installed without the
            repository.
    """
    if model and Path(model).is_dir():
        return Path(model)
    known = model_names("")
    if known and model not in known:
        raise FileNotFoundError(
            f"{model!r}: no model folder, and no name of a model: {', '.join(known)}"
        )
    return resource(f"model/{model}")


def model_folder(model: str) -> Path:
    """The folder to serve a model from: the model's own, or the one that `segserve fetch` created.

    Raises:
        FileNotFoundError: as in `model_source`.
        ModelError: the weights have not been downloaded.
    """
    from ..fetch import servable_folder

    return servable_folder(model_source(model))


def progress_bar(unit: str, *, shown: bool = True) -> Progress:
    columns = (
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
