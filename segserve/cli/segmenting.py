"""`segserve segment`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..segment.layout import Format, Layout
from ..segment.sources import STDIN, find_sources
from .app import USE, app, model_folder, model_names, told_in_one_line
from .asking import ClassesFlag, ModeFlag, ThresholdFlag, TtaFlag, given_options
from .outcomes import Reporter, reporter

if TYPE_CHECKING:
    from ..client import Segmentation, SegmentationClient
    from ..segment.run import Run

    Ask = Callable[..., Segmentation]

_SERVER = "Who computes"
_DEFAULT_FOLDER = Path("segmented")


@dataclass(frozen=True)
class _Computer:
    """What segments, and opened what is called with an image and options, by `workers` threads at most."""

    model: str
    workers: int
    opened: "AbstractContextManager[Ask]"


@app.command(rich_help_panel=USE)
def segment(
    images: Annotated[
        list[str], typer.Argument(help="files, folders, quoted globs such as 'in/**/*.jpg', - for stdin")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"folder of the results; by default {_DEFAULT_FOLDER}, for - stdout"),
    ] = None,
    format: Annotated[Format, typer.Option(help="of the results")] = Format.PNG,  # noqa: A002 - names the flag
    overlay: Annotated[bool, typer.Option("--overlay", help="save a picture to look at, too")] = False,
    force: Annotated[bool, typer.Option("--force", help="make again what is there already")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="tell what became of each image as one JSON object a line")
    ] = False,
    mode: ModeFlag = None,
    tta: TtaFlag = None,
    classes: ClassesFlag = None,
    threshold: ThresholdFlag = None,
    server: Annotated[
        str | None, typer.Option(help="its address; by default that of `segserve serve`", rich_help_panel=_SERVER)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="by default that of `segserve serve`, else $SEGSERVE_TOKEN", rich_help_panel=_SERVER),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="compute here, without a server", rich_help_panel=_SERVER)
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="name of the served model; with --local an archive, a model folder or the name of one in model/",
            autocompletion=model_names,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="requests in flight", rich_help_panel=_SERVER)] = 8,
) -> None:
    """Segment images: files, globs, folders or standard input.

    Results that are there already are left as they are, so that the same command goes on where it was stopped.
    """
    from ..segment.folder import claim_folder
    from ..segment.formats import encode_result
    from ..segment.run import Run, read_source

    options = given_options(mode=mode, tta=tta, classes=classes, threshold=threshold)
    with told_in_one_line():
        _check_alternatives(local=local, server=server, token=token)
        to_stdout = images == [STDIN] and output is None
        layout = Layout(output or _DEFAULT_FOLDER, format, overlay)
        sources = find_sources(images, results=layout.folder)
        computer = _local(model) if local else _served(server, token, model, jobs)
        if to_stdout:
            _check_stdout(format, overlay=overlay, json=json)
            with computer.opened as ask:
                sys.stdout.buffer.write(encode_result(ask(read_source(sources[0]), **options), sources[0], format))
            return
        layout.check(sources, images)
        claim_folder(layout.folder, {"model": computer.model, **options})
        with computer.opened as ask, reporter(len(sources), as_json=json) as report:
            run = Run(sources, layout, partial(ask, **options), computer.workers, force, report.outcome, local)
            status = _finish(run, report)
    raise typer.Exit(status)


def _finish(run: "Run", report: Reporter) -> int:
    """The exit status: 0 where nothing is amiss, else 1, or as the shell has it for a command that a signal ended."""
    from ..segment.coco import write_data_set
    from ..segment.errors import InterruptedRunError, StoppedError

    try:
        run.finish()
        if run.layout.format is Format.COCO and run.done + run.skipped:
            write_data_set(run.layout.folder)
    except StoppedError as error:
        report.end(run, str(error))
        return 1
    except InterruptedRunError as error:
        report.end(run, str(error))
        return 128 + error.signal_number
    report.end(run)
    return int(run.failed > 0)


def _served(url: str | None, token: str | None, model: str | None, jobs: int) -> _Computer:
    from ..client import SegmentationClient
    from ..server.endpoint import find_endpoint

    endpoint = find_endpoint(url, token=token, model=model)
    client = SegmentationClient(endpoint.url, token=endpoint.token, model=endpoint.model, pool_size=jobs)
    return _Computer(endpoint.model, jobs, _open_client(client))


@contextmanager
def _open_client(client: "SegmentationClient") -> "Iterator[Ask]":
    with client:
        yield client.segment


def _local(model: str | None) -> _Computer:
    """Two images at a time: while the network, which uses every core, is at one, the other is read or encoded."""
    from ..runtime.record import read_record
    from ..server.store import model_name

    if model and Path(model).is_file():
        return _Computer(model_name(Path(model)), 2, _open_local(Path(model)))
    folder = model_folder(model or "embedded")
    return _Computer(read_record(folder).name, 2, _open_local(folder))


@contextmanager
def _open_local(path: Path) -> "Iterator[Ask]":
    from ..local import LocalSegmenter  # imports torch

    with LocalSegmenter(path) as segmenter:
        yield segmenter.segment


def _check_alternatives(*, local: bool, server: str | None, token: str | None) -> None:
    for flag, value in (("--server", server), ("--token", token)):
        if local and value:
            raise ValueError(f"--local computes without a server: leave out {flag}, or --local")


def _check_stdout(format: Format, *, overlay: bool, json: bool) -> None:  # noqa: A002 - names the flag
    for flag, given in (("--overlay", overlay), ("--json", json)):
        if given:
            raise ValueError(f"standard output holds one result, and {flag} makes two: name a folder with -o")
    if sys.stdout.isatty() and format in (Format.PNG, Format.NPY):
        raise ValueError(f"{format} is not for a terminal: redirect the output to a file, or name a folder with -o")
