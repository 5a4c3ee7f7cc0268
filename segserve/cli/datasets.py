"""The options that name a data set, and the check before anything is computed or written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..runtime.record import ClassInfo

if TYPE_CHECKING:
    from ..training.data import CheckedSplit

DataOption = Annotated[
    Path, typer.Option(help="folder in PASCAL VOC or COCO layout, or the COCO JSON file of a split")
]
ImagesOption = Annotated[
    Path | None, typer.Option(help="folder of the images, if the data set's layout has none")
]
_SPLIT = "a name, a .txt list or a COCO JSON file; default: the file --data, or"
TrainSplitOption = Annotated[str | None, typer.Option(help=f"{_SPLIT} train")]
DevSplitOption = Annotated[str | None, typer.Option(help=f"{_SPLIT} dev")]


def open_checked(
    data: Path,
    split: str | None,
    classes: Sequence[ClassInfo],
    *,
    default_split: str,
    images: Path | None = None,
    categories: Mapping[str, int] | None = None,
) -> "CheckedSplit":
    """Opens a split and reads all of its files once.

    Raises:
        DataError: lists all problems of the split.
    """
    from ..training.data import check_split, open_data

    opened = open_data(
        data, split, classes, default_split=default_split, images=images, categories=categories
    )
    return check_split(opened, classes)
