"""Flags of `segserve segment` and `segserve batch`, and the reports of their runs."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from ..bulk.storage import printable
from ..schema.request import Alpha, Mode, Tta
from .app import console, figures_table, print_error, write_output

if TYPE_CHECKING:
    from ..bulk.run import Outcome, Run
    from ..schema.response import ClassRow

_request_option = partial(typer.Option, rich_help_panel="Options of a request")
ModeFlag = Annotated[Mode | None, _request_option(help="whole, or in tiles")]
TtaFlag = Annotated[Tta | None, _request_option(help="test-time augmentation")]
ClassesFlag = Annotated[str | None, _request_option(help="keep only these, by name or id: cat,dog")]
ThresholdFlag = Annotated[
    float | None, _request_option(min=0, max=1, help="less certain pixels become background")
]
AlphaFlag = Annotated[Alpha | None, _request_option(help="how to read transparent pixels")]
compute_option = partial(typer.Option, rich_help_panel="What computes")
RetryFlag = Annotated[
    bool, typer.Option("--retry-failed", help="compute images again that failed in an earlier run")
]
RESUME_HINT = "the same command goes on where it stopped"
OVERWRITE_HINT = "the same command without --overwrite goes on where it stopped"
_FORCE_HINT = "the same command starts again; without --force it keeps all existing results"


def given_options(**options: object) -> dict[str, object]:
    """The options that are not None. The server's defaults apply to the others."""
    return {name: value for name, value in options.items() if value is not None}


def counts_text(*, segmented: int, skipped: int = 0, failed: int = 0, left: int = 0) -> str:
    counts = ((skipped, "already there"), (failed, "failed"), (left, "left"))
    return ", ".join(
        [f"{segmented} segmented", *(f"{count} {what}" for count, what in counts if count)]
    )


def end_text(
    counts: str, target: str, seconds: float, failed: int, left_out: Mapping[str, int]
) -> str:
    """The last line of a run that did not end early."""
    line = f"{counts}; results in {printable(target)} ({seconds:.1f} s)"
    if failed:
        line += "; --retry-failed computes the failed images again"
    if left_out:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in left_out.items())
        line += f"; left out, as they are not images: {printable(listed)}"
    return line


def image_table(classes: "Iterable[ClassRow]", title: str) -> Table:
    """The classes of one image."""
    table = figures_table(
        "class", "share of the image", "confidence", title=title, title_justify="left"
    )
    for row in classes:
        table.add_row(row.label, f"{row.fraction:.1%}", f"{row.confidence:.2f}")
    return table


def totals_table(totals: Iterable[tuple[str, float, int]]) -> Table:
    """The classes of several images: label, fraction of all pixels, and number of images."""
    table = figures_table(
        "class", "share of all pixels", "images", title="classes", title_justify="left"
    )
    for label, fraction, images in totals:
        table.add_row(label, f"{fraction:.1%}", str(images))
    return table


class Reporter:
    """Reports failures and progress on stderr, the classes that were found on stdout. With `quiet`,
    only failures and early ends.
    """

    def __init__(
        self, progress: Progress, total: int, left_out: Counter[str], *, quiet: bool = False
    ) -> None:
        self._left_out = left_out
        self._quiet = quiet
        self._progress = progress
        self._task = progress.add_task("", total=total)
        self._pixels, self._images = Counter[str](), Counter[str]()

    def outcome(self, outcome: "Outcome") -> None:
        for row in outcome.classes:
            self._pixels[row.label] += row.pixels
            self._images[row.label] += 1
        if outcome.message and not outcome.is_skipped:
            self._print(f"{outcome.source}: {outcome.message}", style="red")
        self._progress.advance(self._task)

    def end(self, run: "Run", stopped: str = "") -> None:
        """`stopped` is why the run ended early; empty if it did not."""
        self._progress.stop()
        if stopped:
            print_error(stopped_text(run, stopped))
        elif not self._quiet:
            self._summarize(run)

    def _summarize(self, run: "Run") -> None:
        if total := self._pixels.total():
            rows = self._pixels.most_common()
            console.print(
                totals_table((label, count / total, self._images[label]) for label, count in rows)
            )
        folder = f"{run.layout.folder}{os.sep}"
        counts = counts_text(**run.counts)
        self._print(end_text(counts, folder, run.seconds, run.failed, self._left_out))

    def _print(self, line: str, style: str | None = None) -> None:
        self._progress.console.print(
            line, style=style, markup=False, highlight=False, soft_wrap=True
        )


class JsonReporter(Reporter):
    r"""Prints outcomes for programs on stdout: one JSON object per line.

    File names that are not UTF-8 contain `\udcXX`; `os.fsencode` converts these back to bytes.
    """

    def outcome(self, outcome: "Outcome") -> None:
        document: dict[str, object] = {"path": outcome.source.location}
        document |= dict(zip(("output", "overlay"), outcome.files, strict=False))
        if outcome.message:
            document["error"] = {"code": outcome.code, "message": outcome.message}
        if outcome.classes:
            document["classes"] = [row.as_document() for row in outcome.classes]
        if outcome.is_skipped:
            document["skipped"] = True
        write_output(json.dumps(document).encode() + b"\n")

    def end(self, run: "Run", stopped: str = "") -> None:
        end = {
            "left_out": dict(self._left_out),
            "seconds": round(run.seconds, 3),
            "stopped": stopped or None,
        }
        if stopped:
            print_error(stopped_text(run, stopped))
        write_output(json.dumps({"summary": run.counts | end}).encode() + b"\n")


def stopped_text(run: "Run", reason: str) -> str:
    hint = _FORCE_HINT if run.force else RESUME_HINT
    return f"{reason}; {counts_text(**run.counts)}; {hint}"
