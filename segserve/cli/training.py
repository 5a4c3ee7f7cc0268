"""The commands that make models: `segserve data check`, `quantize` and `train`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from ..bulk.sources import find_sources
from ..recipe import Recipe
from ..runtime.architecture import Architecture
from ..runtime.errors import ModelError
from .app import (
    MAKE,
    ModelArgument,
    app,
    console,
    errors_in_one_line,
    figures_table,
    model_folder,
    model_source,
    print_plain,
    progress_bar,
)
from .flags import flags_of, given_for
from .models import (
    CrowdsOption,
    DataOption,
    IgnoreOption,
    ImagesOption,
    SkipOption,
    TrainSplitOption,
    open_checked,
)

if TYPE_CHECKING:
    from ..runtime.record import ClassInfo
    from ..training.data import CheckedSplit
    from ..training.train.loop import StepReport


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

        listed, categories = _listed_classes(data, classes, model)
        names = [split] if split or data.is_file() else split_names(data)
        found = {
            name: open_checked(
                data, name, "train", listed, images, ignore_id, crowds, skip_broken, categories
            )
            for name in names
        }
        for name, checked in found.items():
            _print_split(name or checked.data.split, checked, listed)
        if sheet:
            contact_sheet(found[names[0]].data, listed).save(sheet, "PNG")
            print_plain(f"contact sheet: {sheet}")


def _listed_classes(
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
    table = figures_table("class", "pixels", "share")
    total = max(1, int(checked.pixels.sum()))
    for info, pixels in zip(classes, checked.pixels.tolist(), strict=True):
        table.add_row(info.label, f"{pixels:,}", f"{pixels / total:.2%}")
    console.print(table)


@app.command(rich_help_panel=MAKE)
def quantize(
    model: ModelArgument,
    images: Annotated[
        list[str],
        typer.Argument(help="photographs: files, folders, quoted globs such as 'in/**/*.jpg'"),
    ],
    most: Annotated[int, typer.Option(min=1, help="maximum number of images, spread evenly")] = 64,
) -> None:
    """Measure a model's activation ranges on photographs, for int8 inference (precision: int8 in
    model-config.yaml).
    """
    from ..archive import config_of
    from ..training.quantize import quantize_model

    with errors_in_one_line():
        folder, sources = model_folder(model), find_sources(images)
        paths = [Path(source.location) for source in sources[:: ceil(len(sources) / most)]]
        with progress_bar("image") as progress:
            task = progress.add_task("", total=len(paths))
            quantize_model(folder, paths, lambda count: progress.update(task, completed=count))
        print_plain(
            f"{folder} supports int8. To serve it so: cp -n {config_of(folder)} {folder}, and in "
            "that file set below `handler:`\n\n  precision: int8"
        )


@app.command(rich_help_panel=MAKE)
@flags_of(Architecture, Recipe)
def train(
    model: Annotated[
        Path, typer.Argument(help="model folder; a new one is created from the flags")
    ],
    *,
    data: DataOption,
    images: ImagesOption = None,
    split: TrainSplitOption = None,
    val: Annotated[
        str | None,
        typer.Option(help="split to measure on during training and at the end, as for --split"),
    ] = None,
    ignore_id: IgnoreOption = "255",
    crowds: CrowdsOption = "ignore",
    skip_broken: SkipOption = False,
    classes: Annotated[Path | None, typer.Option(help="class file of a new model")] = None,
    size_px: Annotated[
        int | None,
        typer.Option(
            min=32, help="longer side of a new model's input; default: that of --start, or 448"
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="licence of a new model's weights")] = "not stated",
    recipe: Annotated[
        str, typer.Option(help="file in the model folder; flags override it")
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
    from ..recipe import recipe_with, write_recipe
    from ..runtime.record import read_record
    from ..training.data import dataset_name, read_class_file
    from ..training.evaluate.card import measure_model
    from ..training.train.loop import RunOptions, validation_iou
    from ..training.train.loop import train as train_network
    from ..training.train.model_folder import export_weights, record_for, write_new_record
    from ..training.train.optimization import check_class_weights
    from ..training.train.state import leads

    with errors_in_one_line():
        listed = read_class_file(classes) if classes else None
        labels, categories = (listed.classes, listed.categories) if listed else (None, None)
        fields = given_for(Architecture, given)
        steps = recipe_with(model / recipe, given_for(Recipe, given))
        start = model_folder(steps.start) if steps.starts_from_other else None
        record = record_for(model, fields, labels, size_px=size_px, licence=licence, start=start)
        if start and not (model / recipe).exists():
            steps = steps.at_size(record.input.resize.size_px, given)
        check_class_weights(steps.class_weights, record.labels)
        reading = images, ignore_id, crowds, skip_broken, categories
        training = open_checked(data, split, "train", record.classes, *reading)
        measured = open_checked(data, val, "train", record.classes, *reading) if val else None
        # The model folder is written only now that classes, data and splits are known to be good.
        write_new_record(record, model)
        write_recipe(steps, model / recipe)
        if leads():
            print_plain(f"starts from {_start_text(steps, model)}")
        with progress_bar("step", shown=leads()) as progress:
            network = train_network(
                model,
                steps,
                training,
                run or Path("runs") / model.resolve().name / Path(recipe).stem,
                _shown_in(progress, steps.steps),
                validate=partial(validation_iou, record, measured.data) if measured else None,
                options=RunOptions(checkpoint_every, validate_every, workers),
            )
        if not leads():
            return
        export_weights(network, read_record(model), model)
        if measured:
            report = measure_model(model, measured.data, dataset=dataset_name(data))
            print_plain(f"mean IoU {report.mean_iou:.4f} on {val}")
        print_plain(f"{model} is ready: segserve archive {model}")


def _start_text(recipe: Recipe, model: Path) -> str:
    if recipe.start == "model":
        return f"the weights in {model}"
    if recipe.starts_from_other:
        return f"the weights of {recipe.start}; a classifier with other classes is random"
    if recipe.backbone_weights == "none":
        return (
            "random weights, which needs much data: --start embedded continues a trained model, "
            "--backbone-weights timm downloads a pretrained backbone"
        )
    return f"the backbone of {recipe.backbone_weights}; the head is random"


def _shown_in(progress: Progress, steps: int) -> "Callable[[StepReport], None]":
    """Returns a function that shows loss and latest mean IoU in the progress bar."""
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
