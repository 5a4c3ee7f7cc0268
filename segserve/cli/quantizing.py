"""The command `segserve quantize`."""

from math import ceil
from pathlib import Path
from typing import Annotated

import typer

from ..segment.sources import find_sources
from .app import (
    MAKE,
    ModelArgument,
    app,
    errors_in_one_line,
    model_folder,
    print_plain,
    progress_bar,
)


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
    from ..training.quantize import quantize_model

    with errors_in_one_line():
        folder, sources = model_folder(model), find_sources(images)
        paths = [Path(source.path) for source in sources[:: ceil(len(sources) / most)]]
        with progress_bar("image") as progress:
            task = progress.add_task("", total=len(paths))
            quantize_model(folder, paths, lambda count: progress.update(task, completed=count))
        print_plain(f"{folder} supports int8: set precision: int8 in its model-config.yaml")
