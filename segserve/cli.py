"""The command line, `segserve`. It parses, calls and prints; the work is done in the modules that it calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import requests
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .resources import resource

if TYPE_CHECKING:
    from .evaluate import Evaluation
    from .server.process import TorchServe

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
console = Console()

RUN_DIR = Path(".run")
BUILD_DIR = Path("build")

ModelArgument = Annotated[str, typer.Argument(help="a model folder, or the name of one in model/")]
DataOption = Annotated[Path, typer.Option(help="folder with images/, labels/ and SPLIT.txt in PASCAL VOC layout")]


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """What is wrong with a model, a server, a file or the data ends the command with one line and status 1."""
    from .client import RefusedError
    from .runtime.errors import ModelError
    from .server.errors import ServerError

    try:
        yield
    except (
        ModelError,
        ServerError,
        RefusedError,
        ArithmeticError,
        OSError,
        ValueError,
        requests.RequestException,
    ) as error:
        Console(stderr=True).print(f"segserve: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


@app.command()
def archive(
    model: ModelArgument = "embedded",
    output: Annotated[Path, typer.Option(help="folder for the archive")] = BUILD_DIR,
) -> None:
    """Pack a model into a self-contained archive, byte for byte the same every time."""
    with _told_in_one_line():
        _build(model, output)


@app.command()
def serve(model: ModelArgument = "embedded") -> None:
    """Start TorchServe with a model, wait until it is ready, and leave it running."""
    from .server.process import TorchServe

    with _told_in_one_line():
        path = _build(model, BUILD_DIR)
        server = TorchServe.start([path], RUN_DIR / "serve")
        try:
            server.wait_ready()
        except BaseException:
            server.stop()
            raise
        _print_ready(server, path.stem)


def _print_ready(server: "TorchServe", name: str) -> None:
    authorization = f" -H 'Authorization: Bearer {server.inference_token}'" if server.inference_token else ""
    console.print(f"{name} is ready at {server.inference_url} (log: {server.log_path}). Try:\n", soft_wrap=True)
    _print_plain(
        f"  curl{authorization} -H 'X-Segment-Mask: png' -F data=@PHOTO.jpg {server.inference_url}/predictions/{name}\n"
    )
    _print_plain("The token lives for a day and changes at every start. `make stop` stops the server.")


def _print_plain(line: str) -> None:
    """A line to be copied: neither wrapped nor coloured."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def stop() -> None:
    """Stop the server that `segserve serve` started here."""
    from .server.process import TorchServe

    with _told_in_one_line():
        server = TorchServe.running(RUN_DIR / "serve")
        if server is None:
            console.print("no server is running")
            return
        server.stop()
        console.print("stopped")


@app.command()
def demo(model: ModelArgument = "embedded") -> None:
    """Serve a model, segment two photographs over HTTP and show what was found."""
    from .demo import run_demo

    with _told_in_one_line():
        run_demo(_build(model, BUILD_DIR), RUN_DIR / "demo", BUILD_DIR / "demo", console)


@app.command()
def train(
    model: Annotated[Path, typer.Argument(help="model folder with model.yaml and recipe.yaml")],
    data: DataOption,
    split: Annotated[str, typer.Option(help="split to train on: a name, or the path of a .txt list")] = "train",
    recipe: Annotated[str, typer.Option(help="file in the model folder that says how")] = "recipe.yaml",
    run: Annotated[Path | None, typer.Option(help="folder for checkpoints and log; default: runs/MODEL")] = None,
) -> None:
    """Train a model by its recipe, or go on with a run that was interrupted, and write its weights."""
    from .runtime.record import read_record
    from .train.dataset import VocFolder
    from .train.export import WEIGHTS_FILE, export_weights
    from .train.loop import train as train_network
    from .train.recipe import read_recipe

    with _told_in_one_line():
        steps = read_recipe(model / recipe)
        with _progress("step") as progress:
            task = progress.add_task("", total=steps.steps)

            def report(step: int, loss: float, _seconds: float) -> None:
                progress.update(task, completed=step, description=f"loss {loss:.3f}")

            checkpoints = run or Path("runs") / model.name / Path(recipe).stem
            network = train_network(model, steps, VocFolder(data, split), checkpoints, report)
        export_weights(network, read_record(model), model)
        console.print(f"{model / WEIGHTS_FILE} written")


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataOption,
    split: Annotated[str, typer.Option(help="split to measure on")] = "dev",
    min_images: Annotated[int, typer.Option(help="a second mean over classes that at least so many images hold")] = 20,
    write: Annotated[bool, typer.Option(help="write the result into the model's record and card")] = False,
) -> None:
    """Measure a model's intersection over union at the images' own size."""
    from .evaluate import evaluate as measure
    from .runtime.segmenter import Segmenter
    from .train.card import write_card
    from .train.dataset import VocFolder

    with _told_in_one_line():
        folder = _model_folder(model)
        voc = VocFolder(data, split)
        with _progress("image") as progress:
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


def _build(model: str, output: Path) -> Path:
    from .archive import build_archive
    from .runtime.record import sha256_of

    path = build_archive(_model_folder(model), output)
    _print_plain(f"{path}  {path.stat().st_size / 1e6:.1f} MB  SHA-256 {sha256_of(path)}")
    return path


def _model_folder(model: str) -> Path:
    return Path(model) if Path(model).is_dir() else resource(f"model/{model}")


def _progress(unit: str) -> Progress:
    columns = (
        TextColumn(unit),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=Console(stderr=True))
