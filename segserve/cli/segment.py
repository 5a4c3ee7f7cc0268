"""The commands `segserve segment` and `segserve batch`."""

import json as json_module
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.console import Console

from ..bulk.results import (
    OPTIONS_FILE,
    Format,
    LabelFormat,
    Layout,
    claim,
    encode_result,
    write_data_set,
)
from ..bulk.sources import Source, find_sources
from ..bulk.storage import Storage
from ..resources import model_names
from . import bulk
from .app import (
    USE,
    OutputError,
    TrustFlag,
    app,
    check_output,
    console,
    errors_in_one_line,
    print_error,
    print_plain,
    progress_bar,
    write_output,
)

if TYPE_CHECKING:
    from ..bulk.run import Run
    from ..bulk.table import Summary
    from ..client import SegmentationClient
    from ..client.request import SegmentOptions
    from ..local import LocalSegmenter

_STDIN = "-"
_DEFAULT_FOLDER = Path("segmented")


@app.command(rich_help_panel=USE)
def segment(
    images: Annotated[
        list[str],
        typer.Argument(help="files, folders, quoted globs such as 'in/**/*.jpg', or - for stdin"),
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
        if local and (server or token):
            raise ValueError("--local computes without a server: leave out --server and --token")
        if runtime and not local:
            raise ValueError("--runtime is of the server's archive: leave it out, or add --local")
        if json or images == [_STDIN]:
            check_output()
        if images == [_STDIN]:
            if output or overlay or json:
                raise ValueError(
                    "standard input has one result, on standard output: leave out -o, --overlay "
                    "and --json"
                )
            content = sys.stdin.buffer.read() if sys.stdin else b""
            if not content:
                raise ValueError("standard input is empty: redirect an image into it")
            segmenter, _ = _segmenter(server, token, model, jobs, runtime, local=local)
            with segmenter:
                segmentation = segmenter.segment(content, **options)
            write_output(encode_result(segmentation, Source("", "stdin"), format))
            return
        layout = Layout(output or _DEFAULT_FOLDER, format, overlay)
        left_out = Counter[str]()
        sources = find_sources(images, results=Storage(str(layout.folder)), left_out=left_out)
        layout.check(sources, images, force=force)
        segmenter, name = _segmenter(server, token, model, jobs, runtime, local=local)
        shown = not json and not quiet and Console(stderr=True).is_terminal
        with (
            segmenter,
            _claimed(layout.folder, {"model": name, **given}),
            progress_bar("image", shown=shown) as progress,
        ):
            from ..bulk.run import Run

            reporter = bulk.JsonReporter if json else bulk.Reporter
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
    raise typer.Exit(status)


def _segmenter(
    server: str | None,
    token: str | None,
    model: str | None,
    jobs: int,
    runtime: Literal["torch", "onnx"] | None,
    *,
    local: bool,
) -> "tuple[SegmentationClient | LocalSegmenter, str]":
    """A client, or the model in this process; and the name of the model."""
    if local:
        from ..local import LocalSegmenter  # may import torch

        segmenter = LocalSegmenter(model or "embedded", runtime=runtime)
        return segmenter, segmenter.record.name
    from ..client import SegmentationClient
    from ..gateway.background import find_endpoint

    endpoint = find_endpoint(server, token=token, model=model)
    client = SegmentationClient(
        endpoint.url, token=endpoint.token, model=endpoint.model, pool_size=jobs
    )
    return client, endpoint.model


def _finish(run: "Run", report: bulk.Reporter) -> int:
    """Runs to the end. Returns the exit status: 0, 1 for failures, and the shell's for a signal."""
    from ..bulk.run import StoppedError

    try:
        run.finish()
    except StoppedError as error:
        report.end(run, str(error))
        return error.exit_status
    except OutputError as error:  # standard output accepts no report any more
        raise OutputError(bulk.stopped_text(run, str(error)), error.status) from error
    if run.layout.format is Format.COCO and run.done + run.skipped:
        write_data_set(run.layout.folder)
    report.end(run)
    return int(run.failed > 0)


@contextmanager
def _claimed(folder: Path, settings: dict[str, object]) -> Iterator[None]:
    """Records the settings in the folder of results, unless nothing else is in it at the end.
    Otherwise, a mistyped model name would block the correct name.
    """
    claim(Storage(str(folder)), settings)
    try:
        yield
    finally:
        if os.listdir(folder) == [OPTIONS_FILE]:
            (folder / OPTIONS_FILE).unlink()


@app.command(rich_help_panel=USE)
def batch(
    source: Annotated[
        str,
        typer.Argument(
            help="a folder, a quoted glob, a list (.txt), a table (.parquet, .csv), or the URI of "
            "one"
        ),
    ],
    target: Annotated[
        str, typer.Argument(help="folder or URI of the label maps and of the table of all images")
    ],
    archive: Annotated[Path, typer.Option(help="the model: an archive (.mar)")],
    trust: TrustFlag = None,
    format: Annotated[  # noqa: A002
        LabelFormat, typer.Option(help="of the label maps; rle: in the table alone")
    ] = LabelFormat.PNG,
    column: Annotated[str, typer.Option(help="of a table, with paths or URIs")] = "path",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="delete the target's results and start again")
    ] = False,
    retry_failed: bulk.RetryFlag = False,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="stop when more images than this have failed")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
    mode: bulk.ModeFlag = None,
    tta: bulk.TtaFlag = None,
    classes: bulk.ClassesFlag = None,
    threshold: bulk.ThresholdFlag = None,
    alpha: bulk.AlphaFlag = None,
    workers: Annotated[
        int | None, bulk.compute_option(min=1, help="by default one per GPU, else one per core")
    ] = None,
    address: Annotated[
        str | None, bulk.compute_option(help="of a Ray cluster to join; by default this machine")
    ] = None,
) -> None:
    """Segment any number of images, on this machine or on a Ray cluster.

    To resume a stopped job, run the same command again. It also segments images that were added
    since.
    """
    options = bulk.given_options(
        mode=mode, tta=tta, classes=classes, threshold=threshold, alpha=alpha
    )
    shown = not json and Console(stderr=True).is_terminal
    with errors_in_one_line():
        from ..bulk.batch import Job, run_batch
        from ..bulk.run import StoppedError

        try:
            with (
                _verified(archive, trust) as verified,
                _dropped_native_messages(),
                progress_bar("image", shown=shown) as progress,
            ):
                task = progress.add_task("", total=None)
                summary = run_batch(
                    Job(source, target, verified, format, options, column),
                    workers=workers,
                    address=address,
                    max_failures=max_failures,
                    retry_failed=retry_failed,
                    overwrite=overwrite,
                    report=lambda total, done: progress.update(task, total=total, completed=done),
                )
        except StoppedError as error:
            print_error(f"{error}; {bulk.OVERWRITE_HINT if overwrite else bulk.RESUME_HINT}")
            raise typer.Exit(error.exit_status) from error
        if json:
            typer.echo(json_module.dumps(asdict(summary)))
        else:
            _print_summary(summary, target)
    raise typer.Exit(int(summary.segmented == 0))


@contextmanager
def _verified(archive: Path, trust: Path | None) -> Iterator[Path]:
    """The archive; if it must be signed, a verified copy, which no other process changes."""
    if trust is None:
        yield archive
        return
    from ..signing import TrustedKeys

    with TrustedKeys.read(trust).verified(archive) as copied:
        yield copied


@contextmanager
def _dropped_native_messages() -> Iterator[None]:
    """Drops the messages of Ray on stdout, for example about a dead worker, and those that its
    native code writes to file descriptor 2. Python's stderr stays visible.
    """
    kept = os.dup(2)
    try:
        with (
            open(os.devnull, "w") as null,
            open(os.dup(kept), "w", buffering=1) as shown,
            redirect_stdout(null),
            redirect_stderr(shown),
        ):
            os.dup2(null.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _print_summary(summary: "Summary", target: str) -> None:
    if summary.classes:
        totals = ((total.label, total.fraction, total.images) for total in summary.classes)
        console.print(bulk.totals_table(totals))
    for code, count in summary.failures.items():
        print_plain(f"failed: {count} x {code}")
    counts = bulk.counts_text(segmented=summary.segmented, failed=summary.failed, left=summary.left)
    print_plain(bulk.end_text(counts, target, summary.seconds, summary.failed, summary.left_out))
