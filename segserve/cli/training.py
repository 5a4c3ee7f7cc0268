"""The commands `segserve data check` and `train`. The flags of `train` are the fields of the
architecture and of the recipe, so that a file and the command always have the same ones.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from rich.progress import Progress, TaskID

from ..recipe import Recipe
from ..resources import model_source
from ..runtime.errors import ModelError
from ..runtime.record import RECORD_FILE, Architecture, ClassInfo, Strict, read_record
from . import models
from .app import (
    MAKE,
    app,
    console,
    errors_in_one_line,
    figures_table,
    model_folder,
    print_plain,
    progress_bar,
)

if TYPE_CHECKING:
    from ..training.data import CheckedSplit
    from ..training.loop import StepReport

Command = TypeVar("Command", bound=Callable[..., Any])

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
    images: models.ImagesOption = None,
    ignore_id: models.IgnoreOption = "255",
    crowds: models.CrowdsOption = "ignore",
    skip_broken: models.SkipOption = False,
    sheet: Annotated[
        Path | None, typer.Option(help="write a contact sheet of the first split to this PNG file")
    ] = None,
) -> None:
    """Read every image and label of a data set, and print sizes and pixels by class."""
    with errors_in_one_line():
        from ..training.data.files import contact_sheet
        from ..training.data.opening import split_names

        listed, categories = _listed_classes(data, classes, model)
        names = [split] if split or data.is_file() else split_names(data)
        found = {
            name: models.open_checked(
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
) -> tuple[Sequence[ClassInfo], Mapping[str, int] | None]:
    """The classes, and the categories of each."""
    from ..training.data import read_class_file

    if model:
        return models.classes_of(model_source(model))
    path = classes or data / models.CLASS_FILE
    if not path.is_file():
        raise ModelError(f"{path}: there is no class file; name one with --classes, or --model")
    listed = read_class_file(path)
    return listed.classes, listed.categories


def _print_split(name: str, checked: "CheckedSplit", classes: Sequence[ClassInfo]) -> None:
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


def flags_of(*documents: type[Strict]) -> Callable[[Command], Command]:
    """Replaces a command's `**given` with one flag for every field of the documents, None if not
    given. The syntax of a list is 6,12,18. See `given_for`.
    """

    def with_flags(command: Command) -> Command:
        own = [
            p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]
        made = [_parameter(name, kind) for kind in documents for name in kind.model_fields]
        command.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        return command

    return with_flags


def given_for(document: type[Strict], given: Mapping[str, object]) -> dict[str, object]:
    """The given flags that belong to the document; those of lists as lists of texts."""
    own = {
        name: value
        for name, value in given.items()
        if name in document.model_fields and value is not None
    }
    for name, value in own.items():
        if get_origin(_field_type(name, document)) is tuple:
            own[name] = [part for part in str(value).split(",") if part]
    return own


def _parameter(name: str, document: type[Strict]) -> inspect.Parameter:
    field = _field_type(name, document)
    option = typer.Option(
        help=_described(document).get(name),
        rich_help_panel=document.__name__,
        metavar="A,B,..." if get_origin(field) is tuple else None,
    )
    kind: Any = field if field in (bool, int, float, str) or get_origin(field) is Literal else str
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _field_type(name: str, document: type[Strict]) -> Any:  # noqa: ANN401 - any type
    annotation = document.model_fields[name].annotation
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _described(document: type[Strict]) -> dict[str, str]:
    """The description of each field, from the section `Attributes:` of the document's docstring."""
    _, _, section = inspect.getdoc(document).partition("Attributes:\n")  # type: ignore[union-attr]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


@app.command(rich_help_panel=MAKE)
@flags_of(Architecture, Recipe)
def train(
    model: Annotated[
        Path, typer.Argument(help="model folder; a new one is created from the flags")
    ],
    *,
    data: models.DataOption,
    images: models.ImagesOption = None,
    split: models.TrainSplitOption = None,
    val: Annotated[
        str | None,
        typer.Option(help="split to measure on during training and at the end, as for --split"),
    ] = None,
    ignore_id: models.IgnoreOption = "255",
    crowds: models.CrowdsOption = "ignore",
    skip_broken: models.SkipOption = False,
    classes: Annotated[Path | None, typer.Option(help="class file of a new model")] = None,
    size_px: Annotated[
        int | None,
        typer.Option(
            min=32, help="longer side of a new model's input; default: that of --start, or 448"
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="licence of a new model's weights; default: not stated")
    ] = None,
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
    """Train a model, or resume an interrupted run.

    The result is a model folder that is ready for `segserve archive`.

    On several GPUs: torchrun --standalone --nproc-per-node 4 -m segserve train ...
    """
    from ..recipe import recipe_with, write_recipe
    from ..training.data import dataset_name, read_class_file
    from ..training.loop import train as train_network
    from ..training.loop import validation_iou
    from ..training.model_folder import (
        export_weights,
        exported_sha256,
        record_for,
        write_new_record,
    )
    from ..training.pages import measure_model
    from ..training.state import is_main_process

    with errors_in_one_line():
        labels = read_class_file(classes).classes if classes else None
        fields = given_for(Architecture, given)
        steps = recipe_with(model / recipe, given_for(Recipe, given))
        start = model_folder(steps.start) if steps.starts_from_other else None
        record = record_for(model, fields, labels, size_px=size_px, licence=licence, start=start)
        if start and not (model / recipe).exists():
            steps = steps.at_size(record.input.resize.size_px, given)
        known = model if (model / RECORD_FILE).exists() else start
        class_file = classes or (models.kept_class_file(known) if known else None)
        categories = read_class_file(class_file).categories if class_file else None
        reading = images, ignore_id, crowds, skip_broken, categories
        training = models.open_checked(data, split, "train", record.classes, *reading)
        measured = (
            models.open_checked(data, val, "train", record.classes, *reading) if val else None
        )
        run = run or Path("runs") / model.resolve().name / Path(recipe).stem
        ready = f"{model} is ready: segserve archive {model}"

        def begin(finished: int) -> None:
            """Writes the model folder, as all that the run needs is known to be good now."""
            nonlocal ready
            write_new_record(record, model)
            if class_file:
                models.keep_class_file(class_file, model)
            write_recipe(steps, model / recipe)
            progress.update(task, completed=finished)
            if finished < steps.steps:
                print_plain(f"starts from {_start_text(steps, model)}")
            else:
                ready = (
                    f"the run in {run} was finished before, so {model} has its weights; to train "
                    "again, remove it, or give another folder with --run"
                )

        with progress_bar("step", shown=is_main_process()) as progress:
            task = progress.add_task("", total=steps.steps)
            network = train_network(
                model,
                steps,
                training,
                run,
                _shown_in(progress, task),
                record=record,
                begin=begin,
                validate=partial(validation_iou, record, measured.data) if measured else None,
                checkpoint_every=checkpoint_every,
                validate_every=validate_every,
                workers=workers,
            )
        if not is_main_process():
            return
        record = read_record(model)
        # The same weights keep their calibration and ranges, which `export_weights` removes.
        if record.weights is None or record.weights.sha256 != exported_sha256(network):
            export_weights(network, record, model)
        if measured:
            report = measure_model(model, measured.data, dataset=dataset_name(data))
            print_plain(f"mean IoU {report.mean_iou:.4f} on {val}")
        print_plain(ready)


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


def _shown_in(progress: Progress, task: TaskID) -> "Callable[[StepReport], None]":
    """Returns a function that shows loss and latest mean IoU in the progress bar."""
    mean_iou = ""

    def show(report: "StepReport") -> None:
        nonlocal mean_iou
        if report.mean_iou is not None:
            mean_iou = f", mean IoU {report.mean_iou:.3f}"
        progress.update(
            task, completed=report.step, description=f"loss {report.loss:.3f}{mean_iou}"
        )

    return show
