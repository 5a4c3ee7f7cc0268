"""The command `segserve import`."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..resources import model_source
from ..runtime.errors import ModelError
from ..runtime.record import ClassInfo
from .app import MAKE, app, console, errors_in_one_line, print_plain, progress_bar
from .bulk import given_options
from .models import ImagesOption, TrainSplitOption, keep_class_file, open_for_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..runtime.encode.mask import LabelMap

_missing_option = partial(typer.Option, rich_help_panel="What the checkpoint does not say")
_GOOGLE = "The start of the embedded model's training"
_EQUAL_SHARE = 0.99  # of the pixels, by --compare


@app.command("import", rich_help_panel=MAKE)
def import_model(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="file of torch.save or safetensors, or a folder that save_pretrained wrote"
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="the new model folder; by default model/CHECKPOINT"),
    ] = None,
    classes: Annotated[
        str | None, _missing_option(help="class file, or names: background,cat,dog")
    ] = None,
    size_px: Annotated[
        int | None, _missing_option(min=32, help="longer side of the network's input")
    ] = None,
    mean: Annotated[
        str | None, _missing_option(help="of the input, RGB in 0..1: 0.485,0.456,0.406")
    ] = None,
    std: Annotated[str | None, _missing_option(help="as for --mean: 0.229,0.224,0.225")] = None,
    licence: Annotated[str, _missing_option(help="licence of the weights")] = "not stated",
    backbone: Annotated[str | None, _missing_option(help="name of a timm encoder")] = None,
    output_stride: Annotated[
        int | None, _missing_option(help="8, 16 or 32, if not the library's default")
    ] = None,
    aspp_rates: Annotated[
        str | None, _missing_option(help="6,12,18, if not the library's default")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="photograph to segment as a check", dir_okay=False)
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="the original's result for --image as .npy: class ids (H, W), or scores "
            "(classes, H, W)",
            dir_okay=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="data set that gives the statistics", rich_help_panel=_GOOGLE),
    ] = None,
    images: ImagesOption = None,
    split: TrainSplitOption = None,
) -> None:
    """Import a checkpoint of another library as a model folder.

    DeepLabV3 of torchvision, DeepLabV3 and DeepLabV3Plus of segmentation_models_pytorch, and
    MobileNetV2 with DeepLabV3 of Hugging Face are recognised.

    No code from the file is run. A file .tflite, Google's quantized DeepLabV3-MobileNetV2, is
    imported into an existing model as the start of a training, with --data.
    """
    with errors_in_one_line():
        if checkpoint.suffix == ".tflite":
            _import_google(checkpoint, output, data, images, split)
            return
        if data is not None:
            raise ModelError("--data is for files .tflite: leave it out")
        if compare is not None and image is None:
            raise ModelError("--compare needs --image, the photograph that it belongs to")
        import numpy as np

        from ..importing.model import import_checkpoint
        from ..training.data.files import read_image

        folder = output or Path("model") / _model_name(checkpoint.resolve().stem)
        reference = _read_reference(compare) if compare else None
        imported = import_checkpoint(
            checkpoint,
            folder,
            labels=_labels(classes) if classes else None,
            size_px=size_px,
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
            licence=licence,
            architecture=given_options(
                backbone=backbone,
                output_stride=output_stride,
                aspp_rates=_numbers("--aspp-rates", aspp_rates),
            ),
            image_rgb=read_image(image) if image else None,
            check=partial(_check_agreement, reference=reference),
        )
        if classes and Path(classes).is_file():
            keep_class_file(Path(classes), folder)
        for note in imported.notes:
            print_plain(note)
        if image:
            ids, pixels = np.unique(imported.label_map, return_counts=True)
            found = [imported.record.labels[ids[index]] for index in np.argsort(-pixels)]
            print_plain(f"{image.name}: {', '.join(found)}")
        print_plain(f"{folder} is ready: segserve serve {folder}")


def _model_name(stem: str) -> str:
    """A name that a record may have, such as epoch-10-step-200 for epoch=10-step=200."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip("-_.") or "imported"


def _labels(classes: str) -> "Sequence[str | ClassInfo]":
    if not Path(classes).is_file():
        return tuple(name.strip() for name in classes.split(","))
    from ..training.data import read_class_file

    return read_class_file(Path(classes)).classes


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ModelError(f"{flag}: expected numbers, got {text!r}") from error


def _read_reference(path: Path) -> "NDArray[np.int64]":
    """Class ids, int64 (H, W)."""
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ModelError(f"{path}: is no .npy file of numbers") from error
    array = array[0] if array.ndim == 4 else array
    if array.ndim not in (2, 3):
        raise ModelError(f"{path}: expected (H, W) or (classes, H, W), got {array.shape}")
    ids: NDArray[np.int64] = (array.argmax(0) if array.ndim == 3 else array).astype(np.int64)
    return ids


def _check_agreement(label_map: "LabelMap", reference: "NDArray[np.int64] | None") -> None:
    if reference is None:
        return
    if label_map.shape != reference.shape:
        raise ModelError(
            f"--compare has {reference.shape[1]} x {reference.shape[0]} pixels, the photograph has "
            f"{label_map.shape[1]} x {label_map.shape[0]}: resize the original's scores first"
        )
    share = float((label_map == reference).mean())
    console.print(f"{share:.2%} of the pixels have the original's class", highlight=False)
    if share < _EQUAL_SHARE:
        raise ModelError(
            "that is too few, so nothing was written: check --mean, --std, --size-px, "
            "--output-stride and --aspp-rates"
        )


def _import_google(
    file: Path, output: Path | None, data: Path | None, images: Path | None, split: str | None
) -> None:
    from ..training.reference import import_reference

    if output is None or data is None:
        raise ModelError(f"{file.name} needs --output, an existing model, and --data")
    folder = model_source(str(output))
    labelled = open_for_model(folder, data, split, images, default_split="train")
    with progress_bar("image") as progress:
        task = progress.add_task("")
        import_reference(
            file,
            folder,
            labelled,
            lambda finished, total: progress.update(task, completed=finished, total=total),
        )
    print_plain(
        f"{folder} starts from {file.name}: segserve train {folder} --data {data} --start model"
    )
