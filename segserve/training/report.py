"""Measures a model on labelled images at their original size. The result is a JSON document with a
format version, and the accuracy for a model's record.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from ..runtime.files import write_whole
from ..runtime.record import Accuracy, Calibration, CoveredMean, Strict, Unit
from .data import IGNORED, LabelledImages
from .metrics import PixelCounts, by_label, count_pixels
from .predictors import Predictor, segmented

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

    @property
    def class_iou(self) -> dict[str, float]:
        """Class name -> IoU, for the classes that occur in the labels."""
        return {row.label: row.iou for row in self.classes if row.iou is not None}

    @property
    def class_boundary_iou(self) -> dict[str, float]:
        """Class name -> boundary IoU, without classes whose contour is ignored."""
        return {row.label: row.boundary_iou for row in self.classes if row.boundary_iou is not None}

    def worst(self, number: int) -> list[tuple[str, float]]:
        """Names and mean IoU of the images with the lowest, the worst first."""
        return sorted(self.image_mean_iou.items(), key=lambda item: (item[1], item[0]))[:number]


def measure(
    data: LabelledImages,
    predictor: Predictor,
    report: Callable[[int], None],
    *,
    dataset: str = "",
    min_images: int = 1,
) -> EvaluationReport:
    """Measures a model on a split. Pixels labelled 255 are ignored.

    Several images are processed at once, each by one thread: file, network or request, counts. One
    image is decoded and counted while the network or the server processes another. Only the counts
    of an image are kept.

    Args:
        report: called after every image with the number of finished images.
        dataset: name of the data set, for people.
        min_images: `covered` is over the classes in at least so many images, which is 1 or more.

    Raises:
        ValueError: an image or its labels cannot be read, differ in size, or cannot be segmented, a
            label is no class of the model, or no pixel is labelled. The message names the image.
    """
    began_s, record = perf_counter(), predictor.record
    counts, image_iou = PixelCounts.none(len(record.classes)), {}
    with ThreadPoolExecutor(predictor.at_once) as pool:
        counted = pool.map(lambda name: _counts(data, predictor, name), data.names)
        for finished, (name, of_image) in enumerate(zip(data.names, counted, strict=True), start=1):
            counts += of_image
            if of_image.images_with.any():
                image_iou[name] = of_image.mean_iou
            report(finished)
    if not counts.confusion.any():
        raise ValueError(
            f"every pixel of the {len(data.names)} images is labelled {IGNORED}, to be ignored"
        )
    return EvaluationReport(
        model=record.name,
        model_version=record.version,
        output_stride=record.architecture.output_stride,
        options=predictor.options.model_dump(exclude_unset=True),
        server=predictor.server,
        data=dataset,
        split=data.split,
        images=len(data.names),
        pixels=int(counts.confusion.sum()),
        seconds=round(perf_counter() - began_s, 3),
        mean_iou=counts.mean_iou,
        covered=counts.covered_mean(min_images),
        frequency_weighted_iou=counts.frequency_weighted_iou,
        mean_boundary_iou=counts.mean_boundary_iou,
        pixel_accuracy=counts.pixel_accuracy,
        mean_accuracy=counts.mean_accuracy,
        calibration=record.calibration,
        classes=_class_figures(counts, record.labels),
        confusion=counts.confusion.tolist(),
        image_mean_iou=image_iou,
    )


def _counts(data: LabelledImages, predictor: Predictor, name: str) -> PixelCounts:
    image = segmented(data, predictor, name)
    try:
        return count_pixels(image.truth, image.predicted, len(predictor.record.classes))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _class_figures(counts: PixelCounts, labels: Sequence[str]) -> tuple[ClassFigures, ...]:
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
        "class_iou": report.class_iou,
        "class_boundary_iou": report.class_boundary_iou,
    }
    return Accuracy.model_validate(_rounded(figures))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def write_report(path: Path, report: EvaluationReport) -> None:
    """Writes the report as JSON. The file appears when it is complete."""
    write_whole(path, report.model_dump_json(indent=1) + "\n")
