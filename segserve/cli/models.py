"""The command `segserve fetch`, and the options that name a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..runtime.record import ClassInfo
from .app import MAKE, ModelArgument, app, errors_in_one_line, model_source, print_plain

if TYPE_CHECKING:
    from ..training.data import CheckedSplit
    from ..training.data.options import ReadOptions


@app.command(rich_help_panel=MAKE)
def fetch(
    model: ModelArgument,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="the published file, in place of the download",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Download a published model once, verify it, and prepare it for serving."""
    from ..fetch import fetch_model

    with errors_in_one_line(), _download_bar() as progress:
        task = progress.add_task(model, visible=False)
        folder = fetch_model(
            model_source(model),
            weights=weights,
            report=lambda present, total: progress.update(
                task, completed=present, total=total, visible=True
            ),
        )
        print_plain(f"{model} is ready to be served, from {folder}")


def _download_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = Console(stderr=True)
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


DataOption = Annotated[
    Path, typer.Option(help="folder in PASCAL VOC or COCO layout, or the COCO JSON file of a split")
]
ImagesOption = Annotated[
    Path | None, typer.Option(help="folder of the images, if the data set's layout has none")
]
IgnoreOption = Annotated[
    str, typer.Option(help="value of pixels to ignore in label images, or none")
]
Crowds = Literal["ignore", "objects"]
CrowdsOption = Annotated[Crowds, typer.Option(help="COCO annotations with iscrowd")]
SkipOption = Annotated[
    bool, typer.Option("--skip-broken", help="leave out images and annotations that are broken")
]
_LARGEST_ID = 255
_SPLIT = "a name, a .txt list or a COCO JSON file; default: the file --data, or"
TrainSplitOption = Annotated[str | None, typer.Option(help=f"{_SPLIT} train")]
DevSplitOption = Annotated[str | None, typer.Option(help=f"{_SPLIT} dev")]


def read_options(ignore_id: str, crowds: Crowds, *, skip_broken: bool) -> "ReadOptions":
    """The flags of `IgnoreOption`, `CrowdsOption` and `SkipOption`.

    Raises:
        ValueError: the value to ignore is none of a label image.
    """
    from ..training.data.options import ReadOptions

    if ignore_id != "none" and not (ignore_id.isdecimal() and int(ignore_id) <= _LARGEST_ID):
        raise ValueError(f"--ignore-id: expected none or a value up to 255, got {ignore_id!r}")
    value = None if ignore_id == "none" else int(ignore_id)
    return ReadOptions(value, crowds == "objects", skip_broken)


def open_checked(
    data: Path,
    split: str | None,
    classes: Sequence[ClassInfo],
    *,
    default_split: str,
    images: Path | None = None,
    categories: Mapping[str, int] | None = None,
    options: "ReadOptions | None" = None,
) -> "CheckedSplit":
    """Opens a split and reads all of its files once. Prints unusual facts about it to stderr.

    Raises:
        DataError: lists all problems of the split.
    """
    from ..training.data import check_split, open_data
    from ..training.data.options import AS_USUAL

    options = options or AS_USUAL
    opened = open_data(
        data,
        split,
        classes,
        default_split=default_split,
        images=images,
        categories=categories,
        options=options,
    )
    checked = check_split(opened, classes, skip_broken=options.skip_broken)
    for note in checked.notes:
        typer.echo(note, err=True)
    return checked
