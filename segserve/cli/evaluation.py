"""The commands that measure models: `segserve evaluate`, `calibrate` and `compare`."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..resources import model_names, model_source
from ..runtime.errors import ModelError
from ..runtime.record import read_record
from ..runtime.settings import Settings
from ..schema.request import Mode, Options, Tta
from . import models
from .app import (
    MAKE,
    ModelArgument,
    app,
    console,
    errors_in_one_line,
    figures_table,
    image_count,
    model_folder,
    print_error,
    print_plain,
)

if TYPE_CHECKING:
    from ..training.compare import Comparison
    from ..training.report import EvaluationReport

_SERVER = ("http://", "https://")
_server_option = partial(typer.Option, rich_help_panel="Through a server")


@app.command(rich_help_panel=MAKE)
def evaluate(
    data: models.DataOption,
    model: ModelArgument = "embedded",
    images: models.ImagesOption = None,
    split: models.DevSplitOption = None,
    ignore_id: models.IgnoreOption = "255",
    crowds: models.CrowdsOption = "ignore",
    skip_broken: models.SkipOption = False,
    mode: Annotated[Mode | None, typer.Option(help="as in a request")] = None,
    tta: Annotated[Tta | None, typer.Option(help="as in a request")] = None,
    precision: Annotated[
        Literal["auto", "bf16", "fp32", "int8"], typer.Option(help="as in model-config.yaml")
    ] = "auto",
    min_images: Annotated[
        int,
        typer.Option(min=1, help="a second mean over the classes that occur in at least N images"),
    ] = 20,
    json: Annotated[Path | None, typer.Option(help="write the report to this file")] = None,
    page: Annotated[
        Path | None, typer.Option(help="write metrics and worst images to this HTML file")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="number of images on the page")] = 20,
    write: Annotated[
        bool, typer.Option("--write", help="write the accuracy into the model's record and card")
    ] = False,
    server: Annotated[
        str | None,
        _server_option(help="address of the server; MODEL gives class names and colours"),
    ] = None,
    token: Annotated[
        str | None, _server_option(envvar="SEGSERVE_TOKEN", help="inference token")
    ] = None,
    name: Annotated[
        str | None, _server_option(help="name of the served model; by default the record's")
    ] = None,
) -> None:
    """Measure a model's accuracy on labelled images, in this process or through a server.

    The images keep their original size.
    """
    from ..training.data import dataset_name
    from ..training.measure import measure, offline_model, served_model
    from ..training.pages import EVALUATE_COMMAND, write_card, write_page
    from ..training.report import as_accuracy, write_report

    given = {option: value for option, value in (("mode", mode), ("tta", tta)) if value}
    with errors_in_one_line():
        chosen = precision if precision != "auto" else None
        _check_alternatives("--precision", chosen, {"--server": server})
        changes = {"--server": server, "--mode": mode, "--tta": tta, "--precision": chosen}
        _check_alternatives("--write", write, changes)
        _create_parents(path for path in (json, page) if path)

        folder = (model_source if server else model_folder)(model)
        record, options = read_record(folder), Options.model_validate(given)
        labelled = models.open_for_model(
            folder, data, split, images, ignore_id, crowds, skip_broken
        )
        opened = (
            served_model(server, record, labelled, options, name=name, token=token)
            if server
            else offline_model(folder, options, settings=Settings(precision=precision))
        )
        with opened as predictor:
            with image_count(len(labelled.names)) as report_count:
                report = measure(
                    labelled,
                    predictor,
                    report_count,
                    dataset=dataset_name(data),
                    min_images=min_images,
                )
            _print_report(report)
            if json:
                write_report(json, report)
            if page:
                write_page(page, report, worst, labelled, predictor)
        if write:
            write_card(folder, as_accuracy(report), EVALUATE_COMMAND)


@app.command(rich_help_panel=MAKE)
def calibrate(
    model: ModelArgument,
    data: models.DataOption,
    images: models.ImagesOption = None,
    split: models.DevSplitOption = None,
    ignore_id: models.IgnoreOption = "255",
    crowds: models.CrowdsOption = "ignore",
    skip_broken: models.SkipOption = False,
) -> None:
    """Calibrate a model: fit the temperature that makes its confidence match its accuracy."""
    from ..training.calibration import calibrate_model
    from ..training.data import dataset_name

    with errors_in_one_line():
        folder = model_folder(model)
        labelled = models.open_for_model(
            folder, data, split, images, ignore_id, crowds, skip_broken
        )
        name = f"{dataset_name(data)} {labelled.split}"
        with image_count(len(labelled.names)) as report_count:
            found = calibrate_model(folder, labelled, report_count, dataset=name)
        print_plain(
            f"temperature {found.temperature:g}; expected calibration error {found.ece_before:.4f} "
            f"without it, {found.ece:.4f} with it, on every second of {found.images} images"
        )


@app.command(rich_help_panel=MAKE)
def compare(
    first: Annotated[
        str, typer.Argument(help="a model folder, or a name of model/", autocompletion=model_names)
    ],
    second: Annotated[
        str, typer.Argument(help="another one, or the address of a server: http://127.0.0.1:8080")
    ],
    data: models.DataOption,
    split: models.DevSplitOption = None,
    images: models.ImagesOption = None,
    ignore_id: models.IgnoreOption = "255",
    crowds: models.CrowdsOption = "ignore",
    skip_broken: models.SkipOption = False,
    no_worse_than: Annotated[
        float | None,
        typer.Option(
            min=0, help="end with 1 if the second one's mean IoU is lower by more than this"
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="SEGSERVE_TOKEN", help="inference token of the server")
    ] = None,
) -> None:
    """Compare two models, or a model and a server, on the same labelled images.

    Prints the difference of IoU by class with its 95 % interval.
    """
    with errors_in_one_line(), ExitStack() as stack:
        from ..training.compare import compare as compare_models
        from ..training.measure import offline_model, served_model

        if first.startswith(_SERVER):
            raise ModelError("the first of the two is a model; give the server second")
        folder = model_folder(first)
        record = read_record(folder)
        labelled = models.open_for_model(
            folder, data, split, images, ignore_id, crowds, skip_broken
        )
        other = (
            served_model(second, record, labelled, Options(), token=token)
            if second.startswith(_SERVER)
            else offline_model(model_folder(second))
        )
        predictors = stack.enter_context(offline_model(folder)), stack.enter_context(other)
        with image_count(len(labelled.names)) as report_count:
            found = compare_models(labelled, *predictors, report_count)
        _print_comparison(found, first, second)
    if no_worse_than is not None and found.mean.difference < -no_worse_than:
        print_error(
            f"{second} is worse by {-found.mean.difference:.4f}, more than {no_worse_than:g}"
        )
        raise typer.Exit(1)


def _check_alternatives(option: str, value: object, others: Mapping[str, object]) -> None:
    for other, other_value in others.items():
        if value and other_value:
            raise ValueError(f"{option} and {other} do not go together: leave one out")


def _create_parents(paths: Iterable[Path]) -> None:
    """Creates the output folders first, so that an error is reported before minutes of work."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: expected the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)


def _print_report(report: "EvaluationReport") -> None:
    table = figures_table("class", "images", "IoU", "accuracy", "boundary IoU")
    for row in report.present:
        figures = map(_figure, (row.iou, row.accuracy, row.boundary_iou))
        table.add_row(row.label, str(row.images), *figures)
    console.print(table)
    covered = report.covered
    means = f"mean IoU {report.mean_iou:.4f} over the {len(report.present)} classes present"
    if covered:
        classes = f"{covered.classes} in at least {covered.min_images} images"
        means += f", {covered.mean_iou:.4f} over the {classes}"
    print_plain(means)
    print_plain(
        f"frequency-weighted IoU {report.frequency_weighted_iou:.4f}, "
        f"mean boundary IoU {_figure(report.mean_boundary_iou, digits=4)}, "
        f"pixel accuracy {report.pixel_accuracy:.4f}, mean accuracy {report.mean_accuracy:.4f}"
    )
    print_plain(f"{report.images} images in {report.seconds:.1f} s")


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _print_comparison(found: "Comparison", first: str, second: str) -> None:
    print_plain(f"first: {first}\nsecond: {second}")
    table = figures_table("class", "first", "second", "difference", "95 % interval")
    for row in (*found.classes, found.mean):
        table.add_row(
            row.label,
            f"{row.first:.3f}",
            f"{row.second:.3f}",
            f"{row.difference:+.3f}",
            f"{row.low:+.3f} to {row.high:+.3f}",
        )
    console.print(table)
    print_plain(f"{found.changed_share:.2%} of the labelled pixels have another class")
