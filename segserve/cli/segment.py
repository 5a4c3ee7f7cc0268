"""The command `segserve segment`."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console

from ..bulk.sources import STDIN, STDIN_SOURCE, Source, find_sources
from ..bulk.storage import Storage
from ..bulk.target import FAILURES_FILE, OPTIONS_FILE, Format, Layout, claim
from ..resources import model_names
from . import bulk
from .app import (
    SIGNALLED,
    USE,
    OutputError,
    app,
    check_output,
    errors_in_one_line,
    model_folder,
    progress_bar,
    write_output,
)

if TYPE_CHECKING:
    from ..bulk.run import Run
    from ..client import SegmentationClient
    from ..client.request import SegmentOptions
    from ..local import LocalSegmenter

_DEFAULT_FOLDER = Path("segmented")


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
        bool, typer.Option("--overlay", help="also save the image with its classes in colour")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite existing results")] = False,
    retry_failed: bulk.RetryFlag = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="print the outcome of each image as one JSON object per line"),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print nothing but problems")
    ] = False,
    mode: bulk.ModeFlag = None,
    tta: bulk.TtaFlag = None,
    classes: bulk.ClassesFlag = None,
    threshold: bulk.ThresholdFlag = None,
    alpha: bulk.AlphaFlag = None,
    server: Annotated[
        str | None, bulk.compute_option(help="its address; by default that of `segserve serve`")
    ] = None,
    token: Annotated[
        str | None,
        bulk.compute_option(help="by default that of `segserve serve`, else $SEGSERVE_TOKEN"),
    ] = None,
    local: Annotated[
        bool, bulk.compute_option("--local", help="compute in this process, without a server")
    ] = False,
    model: Annotated[
        str | None,
        bulk.compute_option(
            help="name of the served model; with --local an archive, a model folder "
            "or the name of one in model/",
            autocompletion=model_names,
        ),
    ] = None,
    runtime: Annotated[
        Literal["torch", "onnx"] | None,
        bulk.compute_option(help="with --local, what computes the network; onnx needs no PyTorch"),
    ] = None,
    jobs: Annotated[int, bulk.compute_option(min=1, max=64, help="requests in flight")] = 8,
) -> None:
    """Segment images: files, globs, folders or standard input.

    Existing results are skipped. To resume after an interruption, run the same command again.
    """
    given = bulk.given_options(
        mode=mode, tta=tta, classes=classes, threshold=threshold, alpha=alpha
    )
    options = cast("SegmentOptions", given)
    with errors_in_one_line():
        for flag, value in (("--server", server), ("--token", token)):
            if local and value:
                raise ValueError(f"--local computes without a server: leave out {flag}, or --local")
        if runtime and not local:
            raise ValueError("--runtime is of the server's archive: leave it out, or add --local")
        to_stdout = images == [STDIN] and output is None
        if STDIN in images and sys.stdin is None:  # Python's value for a closed descriptor
            raise ValueError(
                "standard input is closed: name files, or redirect one into it, as in segserve "
                "segment - < cat.png"
            )
        if json or to_stdout:
            check_output()
        if to_stdout:
            _check_stdout(format, overlay=overlay, json=json)
        layout = Layout(output or _DEFAULT_FOLDER, format, overlay)
        left_out = Counter[str]()
        sources = find_sources(images, results=layout.folder, left_out=left_out)
        if not to_stdout:
            layout.check(sources, images)
        name, load = _local(model, runtime) if local else _served(server, token, model, jobs)
        if to_stdout:
            with load() as segmenter:
                from ..bulk.results import encode_result

                segmentation = segmenter.segment(_read_stdin(), **options)
            write_output(encode_result(segmentation, STDIN_SOURCE, format))
            return
        with _claimed(layout, sources, {"model": name, **given}), load() as segmenter:
            from ..bulk.run import Run

            shown = not json and not quiet and Console(stderr=True).is_terminal
            reporter = bulk.JsonReporter if json else bulk.Reporter
            with progress_bar("image", shown=shown) as progress:
                report = reporter(progress, len(sources), left_out, quiet=quiet)
                run = Run(
                    sources,
                    layout,
                    partial(segmenter.segment, **options),
                    2 if local else jobs,  # locally, one segments while one reads or encodes
                    report.outcome,
                    force=force,
                    retry_failed=retry_failed,
                    computes_here=local,
                )
                status = _finish(run, report)
    if STDIN in images and status > SIGNALLED:
        # A thread still reads standard input, and Python's normal exit would abort.
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)


def _finish(run: "Run", report: bulk.Reporter) -> int:
    """Runs to the end. Returns the exit status: 0, 1 for failures, and the shell's for a signal."""
    from ..bulk.results import write_data_set

    try:
        status = bulk.ended_early(run.finish, partial(report.end, run))
    except OutputError as error:  # standard output accepts no report any more
        raise OutputError(bulk.run_text(run, str(error)), error.status) from error
    if status is None:
        if run.layout.format is Format.COCO and run.done + run.skipped:
            write_data_set(run.layout.folder)
        report.end(run)
    return int(run.failed > 0) if status is None else status


@contextmanager
def _claimed(layout: Layout, sources: list[Source], settings: dict[str, object]) -> Iterator[None]:
    """Records the settings in the folder of results; not if no image has an outcome at the end.
    Otherwise, a mistyped model name would block the correct name.
    """
    folder = layout.folder
    is_new = not (folder / OPTIONS_FILE).exists()
    claim(Storage(str(folder)), settings)
    try:
        yield
    finally:
        results = (path for source in sources for path in layout.files(source))
        outcomes = chain([str(folder / FAILURES_FILE)], results)
        if is_new and not any(os.path.lexists(path) for path in outcomes):
            (folder / OPTIONS_FILE).unlink(missing_ok=True)


def _check_stdout(format: Format, *, overlay: bool, json: bool) -> None:  # noqa: A002 - names the flag
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


def _read_stdin() -> bytes:
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError(
            "standard input is empty: redirect an image into it, as in segserve segment - < cat.png"
        )
    return content


def _served(
    url: str | None, token: str | None, model: str | None, jobs: int
) -> "tuple[str, Callable[[], SegmentationClient]]":
    """The name of the model, and a function that creates a client."""
    from ..client import SegmentationClient
    from ..gateway.background import find_endpoint

    endpoint = find_endpoint(url, token=token, model=model)
    client = SegmentationClient(
        endpoint.url, token=endpoint.token, model=endpoint.model, pool_size=jobs
    )
    return endpoint.model, lambda: client


def _local(
    model: str | None, runtime: Literal["torch", "onnx"] | None
) -> "tuple[str, Callable[[], LocalSegmenter]]":
    """The name of the model, and a function that loads it in this process."""
    from ..engines.store import model_name
    from ..runtime.record import read_record

    def load() -> "LocalSegmenter":
        from ..local import LocalSegmenter  # may import torch

        return LocalSegmenter(path, runtime=runtime)

    if model and Path(model).is_file():
        path = Path(model)
        return model_name(path), load
    path = model_folder(model or "embedded")
    return read_record(path).name, load
