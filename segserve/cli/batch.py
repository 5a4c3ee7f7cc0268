"""The command `segserve batch`."""

import json as json_module
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.table import Table

from ..batch.formats import Format
from .app import USE, app, console, errors_in_one_line, print_error, print_plain, progress_bar
from .asking import ClassesFlag, ModeFlag, ThresholdFlag, TtaFlag, given_options
from .output import SIGNALLED
from .trust import TrustFlag, trusted_keys

if TYPE_CHECKING:
    from ..batch.table import Summary

_WORKERS = "Who computes"


@app.command(rich_help_panel=USE)
def batch(
    source: Annotated[
        str,
        typer.Argument(
            help=(
                "a folder, a quoted glob, a list (.txt), a table (.parquet, .csv), or the URI of "
                "one"
            )
        ),
    ],
    target: Annotated[
        str, typer.Argument(help="folder or URI of the label maps and of the table of all images")
    ],
    archive: Annotated[Path, typer.Option(help="the model: an archive (.mar)")],
    trust: TrustFlag = None,
    format: Annotated[  # noqa: A002
        Format, typer.Option(help="of the label maps; rle: in the table alone")
    ] = Format.PNG,
    column: Annotated[str, typer.Option(help="of a table, with paths or URIs")] = "path",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="remove the target's results and begin anew")
    ] = False,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="stop when more images than this have failed")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
    mode: ModeFlag = None,
    tta: TtaFlag = None,
    classes: ClassesFlag = None,
    threshold: ThresholdFlag = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="by default one a GPU, else one a core", rich_help_panel=_WORKERS),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="of a Ray cluster to join; by default this machine", rich_help_panel=_WORKERS
        ),
    ] = None,
) -> None:
    """Segment any number of images, on this machine or on a Ray cluster.

    To resume a stopped job, run the same command again. It also segments images that were added
    since.
    """
    options = given_options(mode=mode, tta=tta, classes=classes, threshold=threshold)

    def work(bar: "_Bar") -> "Summary":
        from ..batch.job import Job
        from ..batch.run import Pool, run_batch

        trusted = trusted_keys(trust)
        if trusted is not None:
            trusted.verify(archive)
        return run_batch(
            source,
            Job(target, format, options),
            archive,
            column=column,
            pool=Pool(workers, address),
            max_failures=max_failures,
            overwrite=overwrite,
            watcher=bar,
        )

    with errors_in_one_line():
        summary = _watched(work, shown=not json and Console(stderr=True).is_terminal)
        _print_summary(summary, target, as_json=json)
    raise typer.Exit(int(summary.segmented == 0))


class _Bar:
    """The progress bar, and the counts for the message about a run that ended early."""

    def __init__(self, *, shown: bool) -> None:
        self._progress = progress_bar("image", shown=shown)
        self._task = self._progress.add_task("", total=None)
        self._before = self._done = self._failed = 0
        self._began_s = 0.0
        self.summary: Summary | None = None

    def began(self, images: int, done: int) -> None:
        self._before = done
        self._progress.update(self._task, total=images, completed=done, description="starting")
        self._progress.start()

    def advanced(self, images: int, failed: int) -> None:
        self._began_s = self._began_s or time.perf_counter()
        self._done += images
        self._failed += failed
        self._progress.update(
            self._task, completed=self._before + self._done, description=self._rate()
        )

    def _rate(self) -> str:
        seconds = time.perf_counter() - self._began_s
        rate = f"{self._done / seconds:.1f} images/s" if seconds > 1 else ""
        return f"{rate}  {self._failed} failed" if self._failed else rate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def ended(self, summary: "Summary") -> None:
        self.summary = summary

    def told_stop(self, why: str) -> str:
        if self.summary is None:
            return why
        return (
            f"{why}; {_counts(self.summary)}, {self.summary.left} left; the same command goes on "
            "where it stopped"
        )


def _watched(work: Callable[[_Bar], "Summary"], *, shown: bool) -> "Summary":
    """Runs the job. If it is stopped or interrupted, prints one line and exits with the matching
    status.
    """
    from ..segment.errors import InterruptedRunError, StoppedError

    bar = _Bar(shown=shown)
    try:
        _require_packages()
        with _native_messages_dropped(), bar:
            return work(bar)
    except KeyboardInterrupt as error:  # during imports, before the job starts
        raise typer.Exit(SIGNALLED + signal.SIGINT) from error
    except (StoppedError, InterruptedRunError) as error:
        print_error(bar.told_stop(str(error)))
        status = SIGNALLED + error.signal_number if isinstance(error, InterruptedRunError) else 1
        raise typer.Exit(status) from error


def _require_packages() -> None:
    try:
        import ray  # noqa: F401

        from ..batch import run  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"batch jobs need Ray and pyarrow ({error}): pip install 'segserve[ray]'"
        ) from error


@contextmanager
def _native_messages_dropped() -> Iterator[None]:
    """Drops the messages that Ray's native code writes to file descriptor 2. They would break the
    progress bar.

    Python's stderr stays visible. Stdout is dropped too, because Ray's messages, for example about
    a dead worker, would precede the summary. The command itself writes to stdout only later.
    """
    python_stderr, kept = sys.stderr, os.dup(2)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            open(os.dup(kept), "w", buffering=1) as shown,
        ):
            sys.stderr = shown
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        sys.stderr = python_stderr


def _print_summary(summary: "Summary", target: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_module.dumps(summary.as_document()))
        return
    table = Table(title="classes", title_justify="left")
    for heading in ("class", "share of all pixels", "images"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for total in summary.classes:
        table.add_row(total.label, f"{total.fraction:.1%}", str(total.images))
    if summary.classes:
        console.print(table)
    for code, count in summary.failures.items():
        print_plain(f"failed: {count} x {code}")
    speed = (
        f" ({summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s)"
        if summary.seconds
        else ""
    )
    print_plain(f"{_counts(summary)}; results in {target}{speed}")


def _counts(summary: "Summary") -> str:
    return f"{summary.segmented} segmented, {summary.failed} failed"
