"""The commands `segserve fetch`, `export`, `quantize` and `profile`, and the options that name a
data set.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from ..bulk.sources import find_sources
from ..resources import model_names, model_source, require_packages
from ..runtime.errors import ModelError
from ..runtime.files import write_whole
from ..runtime.record import RECORD_FILE, ClassInfo, read_record
from ..schema.request import Mode, Tta
from .app import (
    MAKE,
    ModelArgument,
    app,
    console,
    errors_in_one_line,
    figures_table,
    image_count,
    model_folder,
    print_plain,
)

if TYPE_CHECKING:
    from ..exporting.write import ExportReport
    from ..local import LocalSegmenter
    from ..training.data import CheckedSplit, LabelledImages


@app.command(rich_help_panel=MAKE)
def fetch(
    model: ModelArgument,
    weights: Annotated[
        Path | None,
        typer.Option(help="the published file, in place of the download", dir_okay=False),
    ] = None,
) -> None:
    """Download a published model once, verify it, and prepare it for serving."""
    from ..fetch import fetch_model

    terminal = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=terminal, disable=not terminal.is_terminal)
    with errors_in_one_line(), bar as progress:
        task = progress.add_task(model, visible=False)
        folder = fetch_model(
            model_source(model),
            weights=weights,
            report=lambda present, total: progress.update(
                task, completed=present, total=total, visible=True
            ),
        )
        print_plain(f"{model} is ready to be served, from {folder}")


DataOption = Annotated[
    Path, typer.Option(help="folder in PASCAL VOC or COCO layout, or the COCO JSON file of a split")
]
ImagesOption = Annotated[
    Path | None, typer.Option(help="folder of the images, if the data set's layout has none")
]
IgnoreOption = Annotated[
    str, typer.Option(help="value of pixels to ignore in label images, or none")
]
Crowds = Literal["ignore", "objects"]
CrowdsOption = Annotated[Crowds, typer.Option(help="COCO annotations with iscrowd")]
SkipOption = Annotated[
    bool, typer.Option("--skip-broken", help="leave out images and annotations that are broken")
]
_LARGEST_ID = 255
_SPLIT = "a name, a .txt list or a COCO JSON file; default: the file --data, or"
TrainSplitOption = Annotated[str | None, typer.Option(help=f"{_SPLIT} train")]
DevSplitOption = Annotated[str | None, typer.Option(help=f"{_SPLIT} dev")]


def open_checked(
    data: Path,
    split: str | None,
    default_split: str,
    classes: Sequence[ClassInfo],
    images: Path | None = None,
    ignore_id: str = "255",
    crowds: Crowds = "ignore",
    skip_broken: bool = False,
    categories: Mapping[str, int] | None = None,
) -> "CheckedSplit":
    """Opens the split that a command's options name, and reads all of its files once. Prints
    unusual facts about it to stderr. Raises DataError with all problems of the split.
    """
    from ..training.data import ReadOptions, check_split, open_data

    if ignore_id != "none" and not (ignore_id.isdecimal() and int(ignore_id) <= _LARGEST_ID):
        raise ValueError(f"--ignore-id: expected none or a value up to 255, got {ignore_id!r}")
    ignored = None if ignore_id == "none" else int(ignore_id)
    opened = open_data(
        data,
        split,
        classes,
        default_split=default_split,
        images=images,
        categories=categories,
        options=ReadOptions(ignored, crowds == "objects", skip_broken),
    )
    checked = check_split(opened, classes, skip_broken=skip_broken)
    for note in checked.notes:
        typer.echo(note, err=True)
    return checked


CLASS_FILE = "classes.yaml"


def keep_class_file(path: Path, folder: Path) -> None:
    """Copies a class file into a model folder, if its categories are not the class names."""
    from ..training.data import read_class_file

    listed, kept = read_class_file(path), folder / CLASS_FILE
    if kept.exists() or listed.categories != {c.label: n for n, c in enumerate(listed.classes)}:
        write_whole(kept, path.read_bytes())


def kept_class_file(folder: Path) -> Path | None:
    """The class file in a model folder, if there is one. Raises ModelError if its classes are not
    those of the record.
    """
    from ..training.data import read_class_file

    path = folder / CLASS_FILE
    if not path.is_file():
        return None
    if tuple(info.label for info in read_class_file(path).classes) != read_record(folder).labels:
        raise ModelError(
            f"{path}: its classes are not those of {RECORD_FILE}: correct or remove it"
        )
    return path


def classes_of(folder: Path) -> tuple[Sequence[ClassInfo], Mapping[str, int] | None]:
    """The classes of a model, and the categories of each if its folder has a class file."""
    from ..training.data import read_class_file

    path = kept_class_file(folder)
    return read_record(folder).classes, read_class_file(path).categories if path else None


def open_for_model(
    folder: Path,
    data: Path,
    split: str | None,
    images: Path | None = None,
    ignore_id: str = "255",
    crowds: Crowds = "ignore",
    skip_broken: bool = False,
    *,
    default_split: str = "dev",
) -> "LabelledImages":
    """As `open_checked`, with the classes and categories of a model folder."""
    classes, categories = classes_of(folder)
    reading = images, ignore_id, crowds, skip_broken, categories
    return open_checked(data, split, default_split, classes, *reading).data


_CHECK = "What verifies it, besides generated pictures"
_DEFAULT_OUTPUT = Path("build")


@app.command("export", rich_help_panel=MAKE)
def export_model(
    model: ModelArgument = "embedded",
    format: Annotated[  # noqa: A002 - names the flag
        Literal["onnx", "triton", "openvino-server"],
        typer.Option(help="one file, or the model repository of another server"),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="the file, by default build/NAME.onnx; of a repository the folder, by default "
            "build/FORMAT",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="of the weights and the multiplications")
    ] = "fp32",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="a second output: those of every class")
    ] = False,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="a photograph; may be repeated", dir_okay=False, rich_help_panel=_CHECK),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="a data set, to compare the mean IoU too", rich_help_panel=_CHECK),
    ] = None,
    split: DevSplitOption = None,
) -> None:
    """Write a model for other runtimes, verified against PyTorch.

    The ONNX file goes from the picture to the class of every pixel.
    """
    with errors_in_one_line():
        require_packages("torch", "onnx", "onnxruntime")
        folder = model_folder(model)
        record = read_record(folder)
        labelled = open_for_model(folder, data, split) if data else None
        from ..exporting.write import Checks, ExportFormat, export_onnx, export_repository

        kind = ExportFormat(format)
        if kind is ExportFormat.ONNX:
            target = output or _DEFAULT_OUTPUT / f"{record.name}.onnx"
            if target.is_dir():
                raise IsADirectoryError(f"{target} is a folder; --output names a file")
            write = partial(export_onnx, folder, target)
        else:
            target = output or _DEFAULT_OUTPUT / kind
            write = partial(export_repository, folder, target, kind)
        total = len(labelled.names) if labelled else 0
        with image_count(total, shown=total > 0) as report_count:
            checks = Checks(image or (), labelled, report_count)
            report = write(precision=precision, probabilities=probabilities, checks=checks)
        _print(report, target)


def _print(report: "ExportReport", target: Path) -> None:
    print_plain(f"{target}  {report.bytes / 1e6:.1f} MB  SHA-256 {report.sha256}")
    found = report.mean_iou
    where = f"{report.pictures} pictures" if found is None else f"{found.images} images"
    print_plain(f"{report.equal_pixels:.3%} of the pixels of {where} have PyTorch's class")
    difference = report.probability_difference
    print_plain(f"probabilities differ by {difference:.1g} in the mean")
    if found is not None:
        print_plain(f"mean IoU {found.onnx:.4f}, PyTorch's {found.pytorch:.4f}")


@app.command(rich_help_panel=MAKE)
def quantize(
    model: ModelArgument,
    images: Annotated[
        list[str],
        typer.Argument(help="photographs: files, folders, quoted globs such as 'in/**/*.jpg'"),
    ],
    most: Annotated[int, typer.Option(min=1, help="maximum number of images, spread evenly")] = 64,
) -> None:
    """Measure a model's activation ranges on photographs: a CPU with VNNI then computes in int8."""
    from ..training.calibration import quantize_model

    with errors_in_one_line():
        folder, sources = model_folder(model), find_sources(images)
        paths = [Path(source.location) for source in sources[:: ceil(len(sources) / most)]]
        with image_count(len(paths)) as report_count:
            quantize_model(folder, paths, report_count)
        print_plain(
            f"{folder}: a CPU with VNNI now computes it in int8, unless model-config.yaml sets "
            "another precision"
        )


_WARM_UP = 2


@app.command(rich_help_panel=MAKE)
def profile(
    image: Annotated[
        Path, typer.Argument(help="an image file", exists=True, dir_okay=False, readable=True)
    ],
    model: Annotated[
        str,
        typer.Option(
            help="an archive, a model folder, or the name of one in model/",
            autocompletion=model_names,
        ),
    ] = "embedded",
    mode: Annotated[Mode | None, typer.Option(help="as in a request")] = None,
    tta: Annotated[Tta | None, typer.Option(help="as in a request")] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="number of timed runs; the medians are shown")
    ] = 20,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="write PyTorch's trace to this file, for https://ui.perfetto.dev", dir_okay=False
        ),
    ] = None,
) -> None:
    """Profile the segmentation of one image: milliseconds per stage."""
    # Silences the profiler. PyTorch reads it when it is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from ..local import LocalSegmenter

    with errors_in_one_line(), console.status("segmenting"):
        if trace is not None:
            require_packages("torch")
        segmenter = LocalSegmenter(model)
        medians_ms = profile_image(
            segmenter, image.read_bytes(), repeat=repeat, trace=trace, mode=mode, tta=tta
        )
    table = figures_table("stage", "ms", "share", box=None)
    for stage, ms in medians_ms.items():
        table.add_row(stage, f"{ms:.2f}", f"{ms / medians_ms['total']:.0%}")
    console.print(table)
    if trace is not None:
        print_plain(f"trace in {trace}: open it at https://ui.perfetto.dev")


def profile_image(
    segmenter: "LocalSegmenter",
    image: bytes,
    *,
    repeat: int = 20,
    trace: Path | None = None,
    mode: str | None = None,
    tta: str | None = None,
) -> dict[str, float]:
    """The median milliseconds of each stage of `Server-Timing`, and of the whole as `total`.

    `trace` receives one more segmentation under PyTorch's profiler, which slows it down. Raises
    ResponseError if the image or the options are rejected.
    """

    def segment() -> Mapping[str, float]:
        return segmenter.segment(image, mode=mode, tta=tta).timings_ms

    for _ in range(_WARM_UP):
        segment()
    runs_ms = []
    for _ in range(repeat):
        began_s = perf_counter()
        stages_ms = segment()
        runs_ms.append({**stages_ms, "total": 1000 * (perf_counter() - began_s)})
    if trace is not None:
        from torch.profiler import profile

        with profile() as profiler:
            segment()
        profiler.export_chrome_trace(str(trace))
    return {stage: median(run[stage] for run in runs_ms) for stage in runs_ms[0]}
