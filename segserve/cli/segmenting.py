"""The command `segserve segment`."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ..segment.layout import Format, Layout
from ..segment.sources import STDIN, Source, find_sources
from .app import USE, app, errors_in_one_line, model_folder, model_names, print_error
from .asking import ClassesFlag, ModeFlag, ThresholdFlag, TtaFlag, given_options
from .outcomes import Reporter, reporter, told_stop
from .output import SIGNALLED, OutputError, check_output, write_output

if TYPE_CHECKING:
    from ..client import Segmentation, SegmentationClient
    from ..segment.run import Run

    Ask = Callable[..., Segmentation]

_SERVER = "Who computes"
_DEFAULT_FOLDER = Path("segmented")


@dataclass(frozen=True)
class _Computer:
    """A server's client or a local model. At most `workers` threads may call the opened
    function.
    """

    model: str
    workers: int
    opened: "AbstractContextManager[Ask]"


@app.command(rich_help_panel=USE)
def segment(
    images: Annotated[
        list[str],
        typer.Argument(help="files, folders, quoted globs such as 'in/**/*.jpg', - for stdin"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"folder of the results; by default {_DEFAULT_FOLDER}, for - stdout",
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="of the results")] = Format.PNG,  # noqa: A002 - names the flag
    overlay: Annotated[
        bool, typer.Option("--overlay", help="save a picture to look at, too")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="make again what is there already")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="tell what became of each image as one JSON object a line"),
    ] = False,
    mode: ModeFlag = None,
    tta: TtaFlag = None,
    classes: ClassesFlag = None,
    threshold: ThresholdFlag = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="its address; by default that of `segserve serve`", rich_help_panel=_SERVER
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="by default that of `segserve serve`, else $SEGSERVE_TOKEN",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="compute here, without a server", rich_help_panel=_SERVER),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="name of the served model; with --local an archive, a model folder "
            "or the name of one in model/",
            autocompletion=model_names,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=64, help="requests in flight", rich_help_panel=_SERVER)
    ] = 8,
) -> None:
    """Segment images: files, globs, folders or standard input.

    Existing results are skipped. To resume after an interruption, run the same command again.
    """
    from ..segment.formats import encode_result
    from ..segment.run import Run

    options = given_options(mode=mode, tta=tta, classes=classes, threshold=threshold)
    with errors_in_one_line():
        _check_alternatives(local=local, server=server, token=token)
        if STDIN in images:
            _check_stdin()
        if json:
            check_output()
        to_stdout = images == [STDIN] and output is None
        layout = Layout(output or _DEFAULT_FOLDER, format, overlay)
        sources = find_sources(images, results=layout.folder)
        computer = _local(model) if local else _served(server or None, token, model, jobs)
        if to_stdout:
            _check_stdout(format, overlay=overlay, json=json)
            with computer.opened as ask:
                write_output(encode_result(ask(_read_stdin(), **options), sources[0], format))
            return
        layout.check(sources, images)
        with (
            _claimed(layout, sources, {"model": computer.model, **options}),
            computer.opened as ask,
            reporter(len(sources), as_json=json) as report,
        ):
            run = Run(
                sources,
                layout,
                partial(ask, **options),
                computer.workers,
                force,
                report.outcome,
                local,
            )
            status = _finish(run, report)
    if STDIN in images and status > SIGNALLED:
        _leave_reader(status)
    raise typer.Exit(status)


def _finish(run: "Run", report: Reporter) -> int:
    """Returns the exit status: 0 for success, 1 for failures, and the shell's status for a
    signal.
    """
    from ..segment.coco import write_data_set
    from ..segment.errors import InterruptedRunError, StoppedError

    try:
        with _only_first_signal():
            run.finish()
        if run.layout.format is Format.COCO and run.done + run.skipped:
            write_data_set(run.layout.folder)
    except StoppedError as error:
        report.end(run, str(error))
        return 1
    except InterruptedRunError as error:
        report.end(run, str(error))
        return SIGNALLED + error.signal_number
    except OutputError as error:  # standard output accepts no report any more
        print_error(told_stop(run, str(error)))
        return error.status
    report.end(run)
    return int(run.failed > 0)


@contextmanager
def _claimed(
    layout: Layout, sources: Sequence[Source], options: Mapping[str, object]
) -> Iterator[None]:
    """Records the options in the folder of results. Removes the record at the end if there is no
    result.

    Otherwise, the record of a mistyped model name would block the correct name.
    """
    from ..segment.folder import OPTIONS_FILE, claim_folder

    note = layout.folder / OPTIONS_FILE
    was_there = note.exists()
    claim_folder(layout.folder, options)
    try:
        yield
    finally:
        if not was_there and not any(
            os.path.lexists(path) for source in sources for path in layout.files(source)
        ):
            note.unlink(missing_ok=True)


@contextmanager
def _only_first_signal() -> Iterator[None]:
    """Ignores further signals while the run ends, so that a second Ctrl-C does not change the
    message.

    During its work, a run has its own signal handlers. When it is interrupted, it restores the
    previous handlers.
    """
    from ..segment.errors import InterruptedRunError

    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    except InterruptedRunError:
        before = {}  # only the message is left to print
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_reader(status: int) -> NoReturn:
    """Ends the process while a thread still reads standard input. Python's normal exit would
    abort.
    """
    sys.stderr.flush()
    os._exit(status)


def _check_stdin() -> None:
    if sys.stdin is None:  # Python's value for a closed descriptor
        raise ValueError(
            "standard input is closed: name files, or lead one into it, as in segserve segment - < "
            "cat.png"
        )


def _read_stdin() -> bytes:
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError(
            "standard input is empty: lead an image into it, as in segserve segment - < cat.png"
        )
    return content


def _served(url: str | None, token: str | None, model: str | None, jobs: int) -> _Computer:
    from ..client import SegmentationClient
    from ..engines.endpoint import find_endpoint

    endpoint = find_endpoint(url, token=token, model=model)
    client = SegmentationClient(
        endpoint.url, token=endpoint.token, model=endpoint.model, pool_size=jobs
    )
    return _Computer(endpoint.model, jobs, _open_client(client))


@contextmanager
def _open_client(client: "SegmentationClient") -> "Iterator[Ask]":
    with client:
        yield client.segment


def _local(model: str | None) -> _Computer:
    """A model in this process, with two threads: one runs the network on all cores, the other reads
    or encodes.
    """
    from ..engines.store import model_name
    from ..runtime.record import read_record

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
    check_output()
    for flag, given in (("--overlay", overlay), ("--json", json)):
        if given:
            raise ValueError(
                f"standard output holds one result, and {flag} makes two: name a folder with -o"
            )
    if sys.stdout.isatty() and format in (Format.PNG, Format.NPY):
        raise ValueError(
            f"{format} is not for a terminal: redirect the output to a file, or name a folder with "
            "-o"
        )
