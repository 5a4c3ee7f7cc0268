"""The command `segserve calibrate`."""

from .app import (
    MAKE,
    ModelArgument,
    app,
    errors_in_one_line,
    model_folder,
    print_plain,
    progress_bar,
)
from .datasets import DataOption, DevSplitOption, ImagesOption, open_checked


@app.command(rich_help_panel=MAKE)
def calibrate(
    model: ModelArgument,
    data: DataOption,
    images: ImagesOption = None,
    split: DevSplitOption = None,
) -> None:
    """Calibrate a model: fit the temperature that makes its confidence match its accuracy."""
    from ..runtime.record import read_record
    from ..training.data import dataset_name
    from ..training.evaluate.calibration import calibrate_model

    with errors_in_one_line():
        folder = model_folder(model)
        classes = read_record(folder).classes
        labelled = open_checked(data, split, classes, default_split="dev", images=images).data
        with progress_bar("image") as progress:
            task = progress.add_task("", total=len(labelled.names))
            found = calibrate_model(
                folder,
                labelled,
                lambda count: progress.update(task, completed=count),
                dataset=f"{dataset_name(data)} {labelled.split}",
            )
        print_plain(
            f"temperature {found.temperature:g}; expected calibration error {found.ece_before:.4f} "
            f"without it, {found.ece:.4f} with it, on every second of {found.images} images"
        )
