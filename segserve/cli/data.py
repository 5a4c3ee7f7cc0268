"""The command `segserve data check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from ..runtime.errors import ModelError
from .app import MAKE, app, console, errors_in_one_line, model_source, print_plain
from .models import CrowdsOption, IgnoreOption, ImagesOption, SkipOption, open_checked, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..runtime.record import ClassInfo
    from ..training.data import CheckedSplit

data_app = typer.Typer(help="Look at a data set before training.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=MAKE)


@data_app.command("check")
def check_data(
    data: Annotated[Path, typer.Argument(help="folder, or the COCO JSON file of a split")],
    split: Annotated[str | None, typer.Option(help="by default every split of the folder")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="class file; by default classes.yaml in the folder")
    ] = None,
    model: Annotated[str | None, typer.Option(help="the classes of this model instead")] = None,
    images: ImagesOption = None,
    ignore_id: IgnoreOption = "255",
    crowds: CrowdsOption = "ignore",
    skip_broken: SkipOption = False,
    sheet: Annotated[
        Path | None, typer.Option(help="write a contact sheet of the first split to this PNG file")
    ] = None,
) -> None:
    """Read every image and label of a data set, and print what it holds: images, sizes, and the
    images and pixels of each class.
    """
    with errors_in_one_line():
        from ..training.data.check import contact_sheet
        from ..training.data.opening import split_names

        listed, categories = _classes(data, classes, model)
        names = [split] if split or data.is_file() else split_names(data)
        found = {
            name: open_checked(
                data,
                name,
                listed,
                default_split="train",
                images=images,
                categories=categories,
                options=read_options(ignore_id, crowds, skip_broken=skip_broken),
            )
            for name in names
        }
        for name, checked in found.items():
            _print_split(name or checked.data.split, checked, listed)
        if sheet:
            contact_sheet(found[names[0]].data, listed).save(sheet, "PNG")
            print_plain(f"contact sheet: {sheet}")


def _classes(
    data: Path, classes: Path | None, model: str | None
) -> "tuple[Sequence[ClassInfo], Mapping[str, int] | None]":
    """The classes, and the categories of each."""
    from ..runtime.record import read_record
    from ..training.data import read_class_file

    if model:
        return read_record(model_source(model)).classes, None
    path = classes or data / "classes.yaml"
    if not path.is_file():
        raise ModelError(f"{path}: there is no class file; name one with --classes, or --model")
    listed = read_class_file(path)
    return listed.classes, listed.categories


def _print_split(name: str, checked: "CheckedSplit", classes: "Sequence[ClassInfo]") -> None:
    sizes = [checked.data.image_size(image) for image in checked.data.names]
    heights, widths = zip(*sizes, strict=True)
    print_plain(
        f"{name}: {len(sizes)} images of {min(widths)} x {min(heights)} to {max(widths)} x "
        f"{max(heights)} pixels"
    )
    table = Table("class", Column("pixels", justify="right"), Column("share", justify="right"))
    total = max(1, int(checked.pixels.sum()))
    for info, pixels in zip(classes, checked.pixels.tolist(), strict=True):
        table.add_row(info.label, f"{pixels:,}", f"{pixels / total:.2%}")
    console.print(table)
