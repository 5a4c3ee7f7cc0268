"""The command `segserve fetch`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .app import MAKE, ModelArgument, app, errors_in_one_line, model_source, print_plain


@app.command(rich_help_panel=MAKE)
def fetch(
    model: ModelArgument,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="a local file in place of the download: the published one, "
            "unless the record names none",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Download a published model once, verify it, and prepare it for serving."""
    from ..fetch import fetch_model

    with errors_in_one_line(), _download_bar() as progress:
        task = progress.add_task(model, visible=False)
        folder = fetch_model(
            model_source(model),
            weights=weights,
            report=lambda present, total: progress.update(
                task, completed=present, total=total, visible=True
            ),
        )
        print_plain(f"{model} is ready to be served, from {folder}")


def _download_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = Console(stderr=True)
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
