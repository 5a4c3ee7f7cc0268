"""The command `segserve import`."""

from pathlib import Path
from typing import Annotated

import typer

from .app import (
    MAKE,
    ModelArgument,
    app,
    errors_in_one_line,
    model_source,
    print_plain,
    progress_bar,
)


@app.command("import", rich_help_panel=MAKE)
def import_file(
    file: Annotated[
        Path, typer.Argument(help="deeplabv3_mnv2_pascal_quant.tflite of google-coral/test_data")
    ],
    model: ModelArgument,
    data: Annotated[
        Path, typer.Option(help="data set, of whose images the norms' statistics are taken")
    ],
    images: Annotated[
        Path | None, typer.Option(help="the images' folder, where the data's layout has none")
    ] = None,
    split: Annotated[str, typer.Option(help="a name, or the path of a .txt list")] = "train",
) -> None:
    """Import the weights of Google's quantized DeepLabV3-MobileNetV2 into a model, to start a
    training from them.
    """
    from ..runtime.record import read_record
    from ..training.data import open_data
    from ..training.train.reference import import_reference

    with errors_in_one_line():
        folder = model_source(model)
        labelled = open_data(data, split, read_record(folder).classes, images=images)
        with progress_bar("image") as progress:
            task = progress.add_task("")
            import_reference(
                file,
                folder,
                labelled,
                lambda finished, total: progress.update(task, completed=finished, total=total),
            )
        print_plain(
            f"{folder} starts from {file.name}: segserve train {folder} --data {data} --start model"
        )
