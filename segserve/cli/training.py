"""The command `segserve train`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from ..runtime.record import Architecture
from ..training.train.recipe import Recipe
from .app import MAKE, app, console, errors_in_one_line, progress_bar
from .flags import flags_of, given_for

if TYPE_CHECKING:
    from ..training.train.log import StepReport


@app.command(rich_help_panel=MAKE)
@flags_of(Architecture, Recipe)
def train(
    model: Annotated[
        Path, typer.Argument(help="model folder; one without model.yaml is made from the flags")
    ],
    *,
    data: Annotated[
        Path, typer.Option(help="folder in PASCAL VOC or COCO layout, or a COCO JSON file")
    ],
    images: Annotated[
        Path | None, typer.Option(help="the images' folder, where the data's layout has none")
    ] = None,
    split: Annotated[
        str, typer.Option(help="split to train on: a name, or the path of a .txt list")
    ] = "train",
    val: Annotated[
        str | None, typer.Option(help="split to measure on, now and then and at the end")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="class file of a new model")] = None,
    size_px: Annotated[int, typer.Option(min=32, help="longer side of a new model's input")] = 448,
    licence: Annotated[str, typer.Option(help="of a new model's weights")] = "not stated",
    recipe: Annotated[
        str, typer.Option(help="file in the model folder; flags come before it")
    ] = "recipe.yaml",
    run: Annotated[
        Path | None, typer.Option(help="folder of checkpoint and logs; default: runs/MODEL/RECIPE")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="steps")] = 50,
    validate_every: Annotated[int, typer.Option(min=1, help="steps")] = 500,
    workers: Annotated[int, typer.Option(min=0, help="processes that load data")] = 1,
    **given: object,
) -> None:
    """Train a model, or resume an interrupted run, and write a model folder that is ready for
    `segserve archive`.

    On several GPUs: torchrun --standalone --nproc-per-node 4 -m segserve train ...
    """
    from ..training.data import open_data, read_class_file, scan
    from ..training.train.distributed import leads
    from ..training.train.finish import measure_model, write_model
    from ..training.train.loop import RunOptions
    from ..training.train.loop import train as train_network
    from ..training.train.new_model import prepare_model
    from ..training.train.recipe import prepare_recipe
    from ..training.train.validate import Validation

    with errors_in_one_line():
        listed = read_class_file(classes) if classes else None
        asked = given_for(Architecture, given)
        labels, categories = (listed.classes, listed.categories) if listed else (None, None)
        record = prepare_model(model, asked, labels, size_px=size_px, licence=licence)
        opened = partial(open_data, data, images=images, categories=categories)
        steps = prepare_recipe(model / recipe, given_for(Recipe, given))
        training = opened(split, record.classes)
        measured = opened(val, record.classes) if val else None
        if measured:
            scan(measured, record.classes)
        with progress_bar("step", shown=leads()) as progress:
            network = train_network(
                model,
                steps,
                training,
                run or Path("runs") / model.resolve().name / Path(recipe).stem,
                _shown_in(progress, steps.steps),
                validate=Validation(record, measured) if measured else None,
                options=RunOptions(checkpoint_every, validate_every, workers),
            )
        if not leads():
            return
        write_model(network, model)
        if measured:
            report = measure_model(model, measured, dataset=data.resolve().name, split=str(val))
            console.print(f"mean IoU {report.mean_iou:.4f} on {val}", highlight=False)
        console.print(
            f"{model} is ready: segserve archive {model}", highlight=False, soft_wrap=True
        )


def _shown_in(progress: Progress, steps: int) -> "Callable[[StepReport], None]":
    """A function that shows each step's loss and the latest mean IoU in the progress bar."""
    task = progress.add_task("", total=steps)
    mean_iou = ""

    def show(report: "StepReport") -> None:
        nonlocal mean_iou
        if report.mean_iou is not None:
            mean_iou = f", mean IoU {report.mean_iou:.3f}"
        progress.update(
            task, completed=report.step, description=f"loss {report.loss:.3f}{mean_iou}"
        )

    return show
