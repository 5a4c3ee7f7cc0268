"""`segserve train`."""

from pathlib import Path
from typing import Annotated

import typer

from .app import DataOption, app, console, progress_bar, told_in_one_line


@app.command()
def train(
    model: Annotated[Path, typer.Argument(help="model folder with model.yaml and recipe.yaml")],
    data: DataOption,
    split: Annotated[str, typer.Option(help="split to train on: a name, or the path of a .txt list")] = "train",
    recipe: Annotated[str, typer.Option(help="file in the model folder that says how")] = "recipe.yaml",
    run: Annotated[Path | None, typer.Option(help="folder for checkpoints and log; default: runs/MODEL")] = None,
) -> None:
    """Train a model by its recipe, or go on with a run that was interrupted, and write its weights."""
    from ..data import VocFolder
    from ..runtime.record import read_record
    from ..train.export import WEIGHTS_FILE, export_weights
    from ..train.loop import train as train_network
    from ..train.recipe import read_recipe

    with told_in_one_line():
        steps = read_recipe(model / recipe)
        with progress_bar("step") as progress:
            task = progress.add_task("", total=steps.steps)

            def report(step: int, loss: float, _seconds: float) -> None:
                progress.update(task, completed=step, description=f"loss {loss:.3f}")

            checkpoints = run or Path("runs") / model.name / Path(recipe).stem
            network = train_network(model, steps, VocFolder(data, split), checkpoints, report)
        export_weights(network, read_record(model), model)
        console.print(f"{model / WEIGHTS_FILE} written")
