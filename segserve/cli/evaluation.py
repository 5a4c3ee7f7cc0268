"""`segserve evaluate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from .app import DataOption, ModelArgument, app, console, model_folder, progress_bar, told_in_one_line

if TYPE_CHECKING:
    from ..evaluate import Evaluation


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataOption,
    split: Annotated[str, typer.Option(help="split to measure on")] = "dev",
    min_images: Annotated[int, typer.Option(help="a second mean over classes that at least so many images hold")] = 20,
    write: Annotated[bool, typer.Option(help="write the result into the model's record and card")] = False,
) -> None:
    """Measure a model's intersection over union at the images' own size."""
    from ..evaluate import evaluate as measure
    from ..runtime.segmenter import Segmenter
    from ..train.card import write_card
    from ..train.dataset import VocFolder

    with told_in_one_line():
        folder = model_folder(model)
        voc = VocFolder(data, split)
        with progress_bar("image") as progress:
            task = progress.add_task("", total=len(voc.names))
            result = measure(Segmenter.load(folder), voc, lambda count: progress.update(task, completed=count))
        _print_evaluation(result, min_images)
        if write:
            write_card(folder, result.as_accuracy(f"{data.resolve().name} {split}"))


def _print_evaluation(result: "Evaluation", min_images: int) -> None:
    for label, iou in result.class_iou.items():
        console.print(f"{label:<14} {iou:.3f}", highlight=False)
    covered = result.covered(min_images)
    console.print(
        f"mean IoU {result.mean_iou():.4f} over the {len(result.class_iou)} classes present, "
        f"{result.mean_iou(min_images):.4f} over the {len(covered)} in at least {min_images} images; "
        f"pixel accuracy {result.pixel_accuracy:.4f}; {result.images} images",
        highlight=False,
        soft_wrap=True,
    )
