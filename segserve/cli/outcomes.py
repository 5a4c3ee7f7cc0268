"""Reports the outcome of every image: messages and a progress bar on stderr, or JSON on stdout for
programs.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import Progress

from ..segment.sources import printable
from .app import print_error, progress_bar
from .output import write_output

if TYPE_CHECKING:
    from ..segment.run import Outcome, Run


class Reporter(Protocol):
    def outcome(self, outcome: "Outcome") -> None:
        """Called for every image."""

    def end(self, run: "Run", stopped: str = "") -> None:
        """Called once. `stopped` is why the run ended early; empty if it did not."""


@contextmanager
def reporter(total: int, *, as_json: bool) -> Iterator[Reporter]:
    if as_json:
        yield _ForPrograms()
        return
    with progress_bar("image", shown=Console(stderr=True).is_terminal) as progress:
        yield _ForPeople(progress, total)


class _ForPeople:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def outcome(self, outcome: "Outcome") -> None:
        from ..segment.run import Failed

        if isinstance(outcome, Failed):
            line = f"{outcome.source}: {outcome.message}"
            self._progress.console.print(
                line, style="red", markup=False, highlight=False, soft_wrap=True
            )
        self._progress.advance(self._task)

    def end(self, run: "Run", stopped: str = "") -> None:
        self._progress.stop()
        if stopped:
            print_error(told_stop(run, stopped))
            return
        rate = f", {run.done / run.seconds:.1f} images/s" if run.done else ""
        line = (
            f"{_counts(run)}; results in {printable(str(run.layout.folder))}{os.sep} "
            f"({run.seconds:.1f} s{rate})"
        )
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _ForPrograms:
    r"""Prints JSON. File names that are not UTF-8 contain `\udcXX`; `os.fsencode` converts these
    back to bytes.
    """

    def outcome(self, outcome: "Outcome") -> None:
        from ..segment.formats import class_table
        from ..segment.run import Done, Failed

        document: dict[str, object] = {"path": outcome.source.path}
        if isinstance(outcome, Failed):
            document["error"] = {"code": outcome.code, "message": outcome.message}
        else:
            document |= {"output": outcome.files[0]} | (
                {"overlay": outcome.files[1]} if outcome.files[1:] else {}
            )
            document |= (
                {"classes": class_table(outcome.classes)}
                if isinstance(outcome, Done)
                else {"skipped": True}
            )
        _print_json(document)

    def end(self, run: "Run", stopped: str = "") -> None:
        counts = {
            "segmented": run.done,
            "skipped": run.skipped,
            "failed": run.failed,
            "left": run.left,
        }
        try:
            _print_json(
                {
                    "summary": {
                        **counts,
                        "seconds": round(run.seconds, 3),
                        "stopped": stopped or None,
                    }
                }
            )
        finally:
            if stopped:
                print_error(told_stop(run, stopped))


def _counts(run: "Run") -> str:
    counts = ((run.skipped, "already there"), (run.failed, "failed"), (run.left, "left"))
    return ", ".join(
        [f"{run.done} segmented", *(f"{count} {what}" for count, what in counts if count)]
    )


def told_stop(run: "Run", why: str) -> str:
    """The message about a run that ended early, with the counts of its images."""
    if run.force:
        return f"{why}; {_counts(run)}"
    return f"{why}; {_counts(run)}; the same command goes on where it stopped"


def _print_json(document: dict[str, object]) -> None:
    write_output(json.dumps(document).encode() + b"\n")
