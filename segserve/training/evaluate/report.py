"""The report of an evaluation: a JSON document with a format version, and the accuracy for a
model's record.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from ...runtime.encode.mask import encode_jpeg
from ...runtime.encode.overlay import bright, draw_overlay
from ...runtime.files import write_whole
from ...runtime.record import Accuracy, Calibration, CoveredMean, ModelRecord, Strict, Unit
from ..data import IGNORED, LabelledImages
from .measure import Predictor, SegmentedImage, segmented
from .metrics import Evaluation, ImageScore, by_label, count_pixels

Scores = Annotated[
    dict[str, Unit], Field(description="mean IoU of every image over the classes of its labels")
]


class ClassFigures(Strict):
    """One class. A class that does not occur in the labels has no figures, but may be predicted."""

    id: NonNegativeInt
    label: str
    images: NonNegativeInt
    pixels: NonNegativeInt
    iou: Unit | None
    accuracy: Unit | None
    boundary_iou: Unit | None


class EvaluationReport(Strict):
    """The result of one run of `segserve evaluate`.

    Attributes:
        options: the options that were set; the model or the server decides about the others.
        server: the address of the measured server, if there was one.
        pixels: the number of labelled pixels.
        seconds: duration, from the first file to the last count.
        covered: the mean IoU over the classes that occur in enough images.
        calibration: a copy from the model's record (`segserve calibrate`), not a measurement.
        confusion: pixels, a row for every true class, a column for every predicted class.
    """

    format: Literal["segserve-evaluation"] = "segserve-evaluation"
    format_version: Literal[1] = 1
    model: str
    model_version: str
    output_stride: int
    options: dict[str, str]
    server: str | None
    data: str
    split: str
    images: PositiveInt
    pixels: PositiveInt
    seconds: NonNegativeFloat
    mean_iou: Unit
    covered: CoveredMean | None
    frequency_weighted_iou: Unit
    mean_boundary_iou: Unit | None
    pixel_accuracy: Unit
    mean_accuracy: Unit
    calibration: Calibration | None = None
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[NonNegativeInt, ...], ...]
    image_mean_iou: Scores

    @property
    def present(self) -> list[ClassFigures]:
        """The classes that occur in the labels."""
        return [figures for figures in self.classes if figures.images]


def build_report(
    evaluation: Evaluation, predictor: Predictor, *, data: str, split: str, min_images: int
) -> EvaluationReport:
    """The report of an evaluation of this predictor. `data` and `split` are names for people."""
    record = predictor.record
    return EvaluationReport(
        model=record.name,
        model_version=record.version,
        output_stride=record.architecture.output_stride,
        options=predictor.options.model_dump(exclude_unset=True),
        server=predictor.server,
        data=data,
        split=split,
        images=evaluation.images,
        pixels=int(evaluation.counts.confusion.sum()),
        seconds=round(evaluation.seconds, 3),
        mean_iou=evaluation.mean_iou,
        covered=evaluation.covered_mean(min_images),
        frequency_weighted_iou=evaluation.frequency_weighted_iou,
        mean_boundary_iou=evaluation.mean_boundary_iou,
        pixel_accuracy=evaluation.pixel_accuracy,
        mean_accuracy=evaluation.mean_accuracy,
        calibration=record.calibration,
        classes=_class_figures(evaluation),
        confusion=evaluation.counts.confusion.tolist(),
        image_mean_iou={score.name: score.mean_iou for score in evaluation.scores},
    )


def _class_figures(evaluation: Evaluation) -> tuple[ClassFigures, ...]:
    counts, labels = evaluation.counts, evaluation.labels
    iou, accuracy, boundary_iou = (
        by_label(labels, figures) for figures in (counts.iou, counts.accuracy, counts.boundary_iou)
    )
    return tuple(
        ClassFigures(
            id=class_id,
            label=label,
            images=int(counts.images_with[class_id]),
            pixels=int(counts.true[class_id]),
            iou=iou.get(label),
            accuracy=accuracy.get(label),
            boundary_iou=boundary_iou.get(label),
        )
        for class_id, label in enumerate(labels)
    )


def as_accuracy(report: EvaluationReport) -> Accuracy:
    """The accuracy for the model's record, with four digits."""
    same = report.model_dump(include=Accuracy.model_fields.keys() & EvaluationReport.model_fields)
    figures = {
        "dataset": f"{report.data} {report.split}",
        **same,
        "class_iou": {row.label: row.iou for row in report.classes if row.iou is not None},
        "class_boundary_iou": {
            row.label: row.boundary_iou for row in report.classes if row.boundary_iou is not None
        },
    }
    return Accuracy.model_validate(_rounded(figures))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def write_report(path: Path, report: EvaluationReport) -> None:
    """Writes the report as JSON. The file appears when it is complete."""
    write_whole(path, report.model_dump_json(indent=1) + "\n")


_LONGER_SIDE_PX = 400
_PALE, _WRONG_RGB, _WRONG_OPACITY = 0.4, (225, 20, 60), 0.75


def write_page(
    path: Path,
    report: EvaluationReport,
    scores: Sequence[ImageScore],
    data: LabelledImages,
    predictor: Predictor,
) -> None:
    """Writes the page, with these images segmented again. The file appears when it is complete."""
    views = [
        view_image(score, segmented(data, predictor, score.name), predictor.record)
        for score in scores
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


def render_page(report: EvaluationReport, record: ModelRecord, worst: "Sequence[ImageView]") -> str:
    """The page as HTML. Every name in it is escaped.

    Args:
        record: for the colours of the classes.
        worst: the images, in this order.
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
            worst=worst,
        )
    )


@dataclass(frozen=True)
class ImageView:
    """One image of the page. The pictures are `data:` URIs of JPEGs."""

    score: ImageScore
    class_iou: dict[str, float]
    picture: str
    truth: str
    prediction: str
    difference: str


def view_image(score: ImageScore, image: SegmentedImage, record: ModelRecord) -> ImageView:
    """Draws one image with the record's colours.

    Ignored pixels are dark in `truth` and white in `difference`.
    """
    iou = count_pixels(image.truth, image.predicted, len(record.classes)).iou
    small = reduced(image)
    truth, prediction = (
        draw_overlay(small.image_rgb, labels, record.classes, shown=())
        for labels in (small.truth, small.predicted)
    )
    difference = draw_difference(small)
    pictures = Image.fromarray(small.image_rgb), truth, prediction, Image.fromarray(difference)
    return ImageView(score, by_label(record.labels, iou), *map(data_uri, pictures))


def reduced(image: SegmentedImage) -> SegmentedImage:
    """The same with a longer side of at most 400 pixels. Labels use nearest neighbours."""
    return SegmentedImage(
        _thumbnail(image.image_rgb, Resampling.BICUBIC),
        _thumbnail(image.truth, Resampling.NEAREST),
        _thumbnail(image.predicted, Resampling.NEAREST),
    )


def _thumbnail(pixels: NDArray[np.uint8], resampling: Resampling) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LONGER_SIDE_PX, _LONGER_SIDE_PX), resampling)
    return np.array(picture)


def draw_difference(image: SegmentedImage) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), RGB: the image in pale grey, wrong pixels red, ignored pixels white."""
    grey = np.array(Image.fromarray(image.image_rgb).convert("L"))[..., None].repeat(3, axis=2)
    pixels = 255 - _PALE * (255 - grey)
    wrong = (image.truth != image.predicted) & (image.truth != IGNORED)
    pixels[wrong] = (1 - _WRONG_OPACITY) * grey[wrong] + _WRONG_OPACITY * np.array(_WRONG_RGB)
    pixels[image.truth == IGNORED] = 255
    return pixels.astype(np.uint8)


def data_uri(picture: Image.Image) -> str:
    """A JPEG of the picture, for the attribute `src`."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode('ascii')}"
