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
from .datasets import DataOption, ImagesOption, TrainSplitOption, open_checked


@app.command("import", rich_help_panel=MAKE)
def import_file(
    file: Annotated[
        Path, typer.Argument(help="deeplabv3_mnv2_pascal_quant.tflite of google-coral/test_data")
    ],
    model: ModelArgument,
    data: DataOption,
    images: ImagesOption = None,
    split: TrainSplitOption = None,
) -> None:
    """Import the weights of Google's quantized DeepLabV3-MobileNetV2 into a model, as the start of
    a training. The images of the data set give the statistics of the batch norms.
    """
    from ..runtime.record import read_record
    from ..training.train.reference import import_reference

    with errors_in_one_line():
        folder = model_source(model)
        classes = read_record(folder).classes
        checked = open_checked(data, split, classes, default_split="train", images=images)
        with progress_bar("image") as progress:
            task = progress.add_task("")
            import_reference(
                file,
                folder,
                checked.data,
                lambda finished, total: progress.update(task, completed=finished, total=total),
            )
        print_plain(
            f"{folder} starts from {file.name}: segserve train {folder} --data {data} --start model"
        )
