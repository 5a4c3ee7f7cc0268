"""The commands that measure models: `segserve evaluate` and `calibrate`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from ..schema.request import Mode, Tta
from .app import (
    MAKE,
    ModelArgument,
    app,
    console,
    errors_in_one_line,
    model_folder,
    model_names,
    model_source,
    print_plain,
    progress_bar,
)
from .models import (
    CrowdsOption,
    DataOption,
    DevSplitOption,
    IgnoreOption,
    ImagesOption,
    SkipOption,
    open_checked,
    read_options,
)

if TYPE_CHECKING:
    from ..training.data import LabelledImages
    from ..training.evaluate.measure import Predictor
    from ..training.evaluate.metrics import Evaluation
    from ..training.evaluate.report import EvaluationReport

_DEFAULT_MODEL = "embedded"
_PANEL = "Through a server"


@app.command(rich_help_panel=MAKE)
def evaluate(
    data: DataOption,
    model_argument: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="the same as --model", autocompletion=model_names),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"a model folder, or the name of one in model/; by default {_DEFAULT_MODEL}",
            autocompletion=model_names,
        ),
    ] = None,
    images: ImagesOption = None,
    split: DevSplitOption = None,
    ignore_id: IgnoreOption = "255",
    crowds: CrowdsOption = "ignore",
    skip_broken: SkipOption = False,
    mode: Annotated[Mode | None, typer.Option(help="as in a request")] = None,
    tta: Annotated[Tta | None, typer.Option(help="as in a request")] = None,
    output_stride: Annotated[
        Literal[8, 16, 32] | None,
        typer.Option(help="the same weights at this stride, with scaled atrous rates"),
    ] = None,
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
        typer.Option(
            help="address of the server; --model gives class names and colours",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="SEGSERVE_TOKEN", help="inference token", rich_help_panel=_PANEL),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="name of the served model; by default the record's", rich_help_panel=_PANEL
        ),
    ] = None,
) -> None:
    """Measure a model's accuracy on labelled images at their original size, offline or through a
    running server.
    """
    from ..runtime.record import read_record
    from ..runtime.settings import Settings
    from ..schema.request import Options
    from ..training.data import dataset_name
    from ..training.evaluate.card import EVALUATE_COMMAND, write_card
    from ..training.evaluate.measure import offline_model, served_model
    from ..training.evaluate.report import as_accuracy, build_report, write_page, write_report

    given = {option: value for option, value in (("mode", mode), ("tta", tta)) if value}
    with errors_in_one_line():
        _check_alternatives("MODEL", model_argument, {"--model": model})
        _check_alternatives("--output-stride", output_stride, {"--server": server})
        chosen = precision if precision != "auto" else None
        _check_alternatives("--precision", chosen, {"--server": server})
        changes = {
            "--server": server,
            "--output-stride": output_stride,
            "--mode": mode,
            "--tta": tta,
        }
        _check_alternatives("--write", write, {**changes, "--precision": chosen})
        _create_parents(path for path in (json, page) if path)

        folder = (model_source if server else model_folder)(
            model or model_argument or _DEFAULT_MODEL
        )
        record, options = read_record(folder), Options.model_validate(given)
        labelled = open_checked(
            data,
            split,
            record.classes,
            default_split="dev",
            images=images,
            options=read_options(ignore_id, crowds, skip_broken=skip_broken),
        ).data
        opened = (
            served_model(server, record, labelled, options, name=name, token=token)
            if server
            else offline_model(
                folder, options, output_stride=output_stride, settings=Settings(precision=precision)
            )
        )
        with opened as predictor:
            evaluation = _measure(labelled, predictor)
            report = build_report(
                evaluation,
                predictor,
                data=dataset_name(data),
                split=labelled.split,
                min_images=min_images,
            )
            _print_report(report)
            if json:
                write_report(json, report)
            if page:
                write_page(page, report, evaluation.worst(worst), labelled, predictor)
        if write:
            write_card(folder, as_accuracy(report), EVALUATE_COMMAND)


@app.command(rich_help_panel=MAKE)
def calibrate(
    model: ModelArgument,
    data: DataOption,
    images: ImagesOption = None,
    split: DevSplitOption = None,
    ignore_id: IgnoreOption = "255",
    crowds: CrowdsOption = "ignore",
    skip_broken: SkipOption = False,
) -> None:
    """Calibrate a model: fit the temperature that makes its confidence match its accuracy."""
    from ..runtime.record import read_record
    from ..training.data import dataset_name
    from ..training.evaluate.calibration import calibrate_model

    with errors_in_one_line():
        folder = model_folder(model)
        classes = read_record(folder).classes
        labelled = open_checked(
            data,
            split,
            classes,
            default_split="dev",
            images=images,
            options=read_options(ignore_id, crowds, skip_broken=skip_broken),
        ).data
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


def _measure(data: "LabelledImages", predictor: "Predictor") -> "Evaluation":
    from ..training.evaluate.measure import measure

    with progress_bar("image") as progress:
        task = progress.add_task("", total=len(data.names))
        return measure(data, predictor, lambda count: progress.update(task, completed=count))


def _print_report(report: "EvaluationReport") -> None:
    table = Table()
    table.add_column("class")
    for heading in ("images", "IoU", "accuracy", "boundary IoU"):
        table.add_column(heading, justify="right")
    for row in report.present:
        table.add_row(
            row.label,
            str(row.images),
            _figure(row.iou),
            _figure(row.accuracy),
            _figure(row.boundary_iou),
        )
    console.print(table)
    covered = report.covered
    means = [f"mean IoU {report.mean_iou:.4f} over the {len(report.present)} classes present"]
    if covered:
        means.append(
            f"{covered.mean_iou:.4f} over the {covered.classes} in at least {covered.min_images} "
            "images"
        )
    print_plain(", ".join(means))
    print_plain(
        f"frequency-weighted IoU {report.frequency_weighted_iou:.4f}, "
        f"mean boundary IoU {_figure(report.mean_boundary_iou, digits=4)}, "
        f"pixel accuracy {report.pixel_accuracy:.4f}, mean accuracy {report.mean_accuracy:.4f}"
    )
    print_plain(f"{report.images} images in {report.seconds:.1f} s")


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
