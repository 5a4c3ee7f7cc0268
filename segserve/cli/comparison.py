"""The command `segserve compare`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..runtime.errors import ModelError
from .app import (
    MAKE,
    app,
    console,
    errors_in_one_line,
    model_folder,
    model_names,
    print_error,
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
    from ..training.evaluate.compare import Comparison

_SERVER = ("http://", "https://")


@app.command(rich_help_panel=MAKE)
def compare(
    first: Annotated[
        str,
        typer.Argument(help="a model folder, or a name of model/", autocompletion=model_names),
    ],
    second: Annotated[
        str, typer.Argument(help="another one, or the address of a server: http://127.0.0.1:8080")
    ],
    data: DataOption,
    split: DevSplitOption = None,
    images: ImagesOption = None,
    ignore_id: IgnoreOption = "255",
    crowds: CrowdsOption = "ignore",
    skip_broken: SkipOption = False,
    no_worse_than: Annotated[
        float | None,
        typer.Option(
            min=0, help="end with 1 if the second one's mean IoU is lower by more than this"
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="write figures and changed images to this HTML file")
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="number of images on the page")] = 20,
    token: Annotated[
        str | None, typer.Option(envvar="SEGSERVE_TOKEN", help="inference token of the server")
    ] = None,
) -> None:
    """Compare two models, or a model and a server, on the same labelled images: the difference of
    IoU by class with its 95 % interval, and the images that changed most.
    """
    with errors_in_one_line(), ExitStack() as stack:
        from ..runtime.record import read_record
        from ..schema.request import Options
        from ..training.evaluate.compare import compare as compare_models
        from ..training.evaluate.compare import write_comparison
        from ..training.evaluate.measure import offline_model, served_model

        if first.startswith(_SERVER):
            raise ModelError("the first of the two is a model; give the server second")
        folder = model_folder(first)
        record = read_record(folder)
        labelled = open_checked(
            data,
            split,
            record.classes,
            default_split="dev",
            images=images,
            options=read_options(ignore_id, crowds, skip_broken=skip_broken),
        ).data
        other = (
            served_model(second, record, labelled, Options(), name=None, token=token)
            if second.startswith(_SERVER)
            else offline_model(model_folder(second))
        )
        predictors = stack.enter_context(offline_model(folder)), stack.enter_context(other)
        with progress_bar("image") as progress:
            task = progress.add_task("", total=len(labelled.names))
            found = compare_models(
                labelled, *predictors, lambda count: progress.update(task, completed=count)
            )
        _print_comparison(found, first, second)
        if page:
            names = first, second
            write_comparison(page, found, labelled, *predictors, names=names, most=most)
    if no_worse_than is not None and found.mean.difference < -no_worse_than:
        print_error(
            f"{second} is worse by {-found.mean.difference:.4f}, more than {no_worse_than:g}"
        )
        raise typer.Exit(1)


def _print_comparison(found: "Comparison", first: str, second: str) -> None:
    print_plain(f"first: {first}\nsecond: {second}")
    table = Table()
    table.add_column("class")
    for heading in ("first", "second", "difference", "95 % interval"):
        table.add_column(heading, justify="right")
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
