"""The command `segserve calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from .app import (
    MAKE,
    ModelArgument,
    app,
    errors_in_one_line,
    model_folder,
    print_plain,
    progress_bar,
)


@app.command(rich_help_panel=MAKE)
def calibrate(
    model: ModelArgument,
    data: Annotated[
        Path, typer.Option(help="folder in PASCAL VOC or COCO layout, or a COCO JSON file")
    ],
    images: Annotated[
        Path | None, typer.Option(help="the images' folder, where the data's layout has none")
    ] = None,
    split: Annotated[
        str, typer.Option(help="split to calibrate on: a name, or the path of a .txt list")
    ] = "dev",
) -> None:
    """Calibrate a model: fit the temperature that makes its confidence match its accuracy."""
    from ..runtime.record import read_record
    from ..training.data import open_data, scan
    from ..training.evaluate.calibration import calibrate_model

    with errors_in_one_line():
        folder = model_folder(model)
        classes = read_record(folder).classes
        labelled = open_data(data, split, classes, images=images)
        scan(labelled, classes)
        with progress_bar("image") as progress:
            task = progress.add_task("", total=len(labelled.names))
            found = calibrate_model(
                folder,
                labelled,
                lambda count: progress.update(task, completed=count),
                dataset=f"{data.resolve().name} {Path(split).stem}",
            )
        print_plain(
            f"temperature {found.temperature:g}; expected calibration error {found.ece_before:.4f} "
            "without it, "
            f"{found.ece:.4f} with it, on every second of {found.images} images"
        )
