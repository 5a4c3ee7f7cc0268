"""The documents of an evaluation: the HTML page, and the model card, `README.md` of a model folder,
with record, accuracy, notes and recipes as text.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from ..recipe import RECIPE_FILE
from ..runtime.encode.mask import LabelMap, encode_jpeg
from ..runtime.encode.overlay import bright, draw_overlay
from ..runtime.files import write_whole
from ..runtime.network import build_network
from ..runtime.record import RECORD_FILE, Accuracy, ModelRecord, read_record, write_record
from ..runtime.settings import CONFIG_FILE
from .data import IGNORED, LabelledImages
from .measure import EvaluatedImage, Predictor, measure, offline_model, segmented
from .report import EvaluationReport, as_accuracy, by_label, count_pixels

CARD_FILE = "README.md"
NOTES_FILE = "NOTES.md"
PICTURE_FILE = "predictions.jpg"

TRAIN_COMMAND, EVALUATE_COMMAND = "segserve train", "segserve evaluate --write"

_PICTURE_ROWS, _MIN_IMAGES = 4, 20

_LONGER_SIDE_PX = 400
_PALE, _WRONG_RGB, _WRONG_OPACITY = 0.4, (225, 20, 60), 0.75


def measure_model(folder: Path, data: LabelledImages, *, dataset: str) -> EvaluationReport:
    """Measures the folder's model after training, as it will be served.

    Writes the accuracy into the record, a picture of predictions and the card.
    """
    with offline_model(folder) as predictor:
        report = measure(
            data, predictor, lambda _finished: None, dataset=dataset, min_images=_MIN_IMAGES
        )
        picture = _predictions(data, predictor)
    write_whole(folder / PICTURE_FILE, encode_jpeg(picture))
    write_card(folder, as_accuracy(report), TRAIN_COMMAND)
    return report


def write_card(folder: Path, accuracy: Accuracy, command: str) -> None:
    """Writes the accuracy into the folder's record, and the card, which contains `NOTES.md` and
    names the command that writes it.
    """
    record = read_record(folder).model_copy(update={"accuracy": accuracy})
    write_record(record, folder)
    notes = folder / NOTES_FILE
    network = build_network(record.architecture, len(record.classes))
    text = (
        page_templates()
        .get_template("card.md.j2")
        .render(
            record=record,
            architecture=record.architecture,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            accuracy=accuracy,
            further_figures=_further_figures(accuracy),
            command=command,
            picture=PICTURE_FILE if (folder / PICTURE_FILE).exists() else None,
            notes=notes.read_text(encoding="utf-8") if notes.exists() else "",
            recipes={path.name: path.read_text(encoding="utf-8") for path in _recipes(folder)},
        )
    )
    write_whole(folder / CARD_FILE, text)


def _further_figures(accuracy: Accuracy) -> dict[str, float | None]:
    figures = {
        "frequency-weighted IoU": accuracy.frequency_weighted_iou,
        "mean accuracy": accuracy.mean_accuracy,
        "mean boundary IoU": accuracy.mean_boundary_iou,
    }
    if covered := accuracy.covered:
        classes = f"{covered.classes} classes in at least {covered.min_images} images"
        return {f"mean IoU over the {classes}": covered.mean_iou, **figures}
    return figures


def _recipes(folder: Path) -> list[Path]:
    """The folder's recipes, that of the first stage first."""
    no_recipes = (RECORD_FILE, CONFIG_FILE, RECIPE_FILE)
    others = sorted(path for path in folder.glob("*.yaml") if path.name not in no_recipes)
    return [path for path in (folder / RECIPE_FILE, *others) if path.exists()]


def _predictions(data: LabelledImages, predictor: Predictor) -> Image.Image:
    """The split's first images in rows: picture, true classes, predicted classes."""
    rows = []
    for name in data.names[:_PICTURE_ROWS]:
        image = reduced(segmented(data, predictor, name))
        labelled = [draw_labels(image, labels, predictor.record) for labels in image[1:]]
        rows.append(np.hstack([image.image_rgb, *labelled]))
    width_px = max(row.shape[1] for row in rows)
    white = [
        np.pad(row, ((0, 0), (0, width_px - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return Image.fromarray(np.vstack(white))


def write_page(
    path: Path,
    report: EvaluationReport,
    worst: int,
    data: LabelledImages,
    predictor: Predictor,
) -> None:
    """Writes the page, with the `worst` images segmented again."""
    views = [
        {"name": name, "mean_iou": mean_iou}
        | view_image(segmented(data, predictor, name), predictor.record)
        for name, mean_iou in report.worst(worst)
    ]
    write_whole(path, render_page(report, predictor.record, views))


def page_templates() -> Environment:
    """The templates of HTML pages, in which every value is escaped, and of the model card."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["figure"] = lambda value: "-" if value is None else f"{value:.3f}"
    return environment


def render_page(
    report: EvaluationReport, record: ModelRecord, views: Sequence[Mapping[str, object]]
) -> str:
    """The page as HTML. Every name in it is escaped. Views are those of `view_image`, with `name`
    and `mean_iou`.
    """
    return (
        page_templates()
        .get_template("page.html.j2")
        .render(
            report=report,
            colors=["#{:02x}{:02x}{:02x}".format(*bright(info.color)) for info in record.classes],
            rows=report.present,
            columns=[
                row
                for row in report.classes
                if row.images or any(true[row.id] for true in report.confusion)
            ],
            worst=views,
        )
    )


def view_image(image: EvaluatedImage, record: ModelRecord) -> dict[str, object]:
    """One image of the page: `class_iou`, class name -> IoU, and `picture`, `truth`, `prediction`
    and `difference`, `data:` URIs of JPEGs.

    Ignored pixels are dark in `truth` and white in `difference`.
    """
    iou = count_pixels(image.truth, image.predicted, len(record.classes)).iou
    small = reduced(image)
    pictures = {
        "picture": small.image_rgb,
        "truth": draw_labels(small, small.truth, record),
        "prediction": draw_labels(small, small.predicted, record),
        "difference": draw_difference(small),
    }
    uris = {title: data_uri(picture) for title, picture in pictures.items()}
    return {"class_iou": by_label(record.labels, iou), **uris}


def reduced(image: EvaluatedImage) -> EvaluatedImage:
    """The same with a longer side of at most 400 pixels. Labels use nearest neighbours."""
    return EvaluatedImage(
        _thumbnail(image.image_rgb, Resampling.BICUBIC),
        _thumbnail(image.truth, Resampling.NEAREST),
        _thumbnail(image.predicted, Resampling.NEAREST),
    )


def _thumbnail(pixels: NDArray[np.uint8], resampling: Resampling) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LONGER_SIDE_PX, _LONGER_SIDE_PX), resampling)
    return np.array(picture)


def draw_difference(image: EvaluatedImage) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB: the image in pale grey, wrong pixels red, ignored pixels white."""
    grey = np.array(Image.fromarray(image.image_rgb).convert("L"))[..., None].repeat(3, axis=2)
    pixels = 255 - _PALE * (255 - grey)
    wrong = (image.truth != image.predicted) & (image.truth != IGNORED)
    pixels[wrong] = (1 - _WRONG_OPACITY) * grey[wrong] + _WRONG_OPACITY * np.array(_WRONG_RGB)
    pixels[image.truth == IGNORED] = 255
    return pixels.astype(np.uint8)


def draw_labels(image: EvaluatedImage, labels: LabelMap, record: ModelRecord) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB: the image with a label map, uint8 (H, W), laid over it."""
    return np.asarray(draw_overlay(image.image_rgb, labels, record.classes, shown=()))


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A JPEG of the pixels, uint8 (H, W, 3), RGB, for the attribute `src`."""
    jpeg = encode_jpeg(Image.fromarray(pixels))
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
