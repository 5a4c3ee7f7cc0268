"""The command `segserve batch`."""

import json as json_module
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..bulk.batch import BatchRun, Job, LabelFormat
from . import bulk
from .app import (
    USE,
    TrustFlag,
    app,
    console,
    errors_in_one_line,
    print_error,
    print_plain,
    progress_bar,
)

if TYPE_CHECKING:
    from ..bulk.table import Summary


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
    with errors_in_one_line():
        if trust:
            from ..signing import TrustedKeys

            TrustedKeys.read(trust).verify(archive)
        job = Job(source, target, archive, format, options, column)
        run = BatchRun(job, workers, address, max_failures, retry_failed)

        def finish() -> None:
            with _dropped_native_messages(), _shown_progress(run, shown=not json):
                run.finish(overwrite=overwrite)

        status = bulk.ended_early(finish, lambda reason: print_error(_stop_text(run, reason)))
        if status is None and run.summary:
            _print_summary(run.summary, target, as_json=json)
            status = int(run.summary.segmented == 0)
    raise typer.Exit(status or 0)


@contextmanager
def _shown_progress(run: BatchRun, *, shown: bool) -> Iterator[None]:
    """Shows a progress bar on a terminal, from the first report on."""
    progress = progress_bar("image", shown=shown and Console(stderr=True).is_terminal)
    task = progress.add_task("starting", total=None)

    def report(total: int, done: int, failed: int) -> None:
        speed = progress.tasks[0].speed
        texts = (f"{speed:.1f} images/s" if speed else "", f"{failed} failed" if failed else "")
        progress.update(
            task, total=total, completed=done, description="  ".join(filter(None, texts))
        )
        progress.start()

    run.report = report
    try:
        yield
    finally:
        progress.stop()


@contextmanager
def _dropped_native_messages() -> Iterator[None]:
    """Drops the messages that Ray's native code writes to file descriptor 2. They would break the
    progress bar.

    Python's stderr stays visible. Stdout is dropped too, because Ray's messages, for example about
    a dead worker, would precede the summary. The command itself writes to stdout only later.
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


def _stop_text(run: BatchRun, reason: str) -> str:
    return f"{reason}; {_counts(run.summary)}; {bulk.RESUME_HINT}" if run.summary else reason


def _counts(summary: "Summary") -> str:
    return bulk.counts_text(segmented=summary.segmented, failed=summary.failed, left=summary.left)


def _print_summary(summary: "Summary", target: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_module.dumps(asdict(summary)))
        return
    if summary.classes:
        totals = ((total.label, total.fraction, total.images) for total in summary.classes)
        console.print(bulk.totals_table(totals))
    for code, count in summary.failures.items():
        print_plain(f"failed: {count} x {code}")
    seconds, speed = summary.seconds, summary.images_per_second
    rate = f" ({seconds:.1f} s, {speed:.1f} images/s)" if seconds else ""
    hint = f"; {bulk.RETRY_HINT}" if summary.failed else ""
    print_plain(f"{_counts(summary)}; results in {target}{rate}{hint}")
