"""The report and the worst images as one HTML file without scripts or links to other files."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from ...runtime.encode.mask import encode_jpeg
from ...runtime.encode.overlay import draw_overlay
from ...runtime.files import write_whole
from ...runtime.record import ModelRecord
from ..data import IGNORED, LabelledImages
from .measure import Predictor, SegmentedImage, segmented
from .metrics import ImageScore, count_pixels
from .report import EvaluationReport

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


def render_page(report: EvaluationReport, record: ModelRecord, worst: "Sequence[ImageView]") -> str:
    """The page as HTML. Every name in it is escaped.

    Args:
        record: for the colours of the classes.
        worst: the images, in this order.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment.get_template("page.html.j2").render(
        report=report,
        colors=["#{:02x}{:02x}{:02x}".format(*info.color) for info in record.classes],
        rows=report.present,
        columns=[
            row
            for row in report.classes
            if row.images or any(true[row.id] for true in report.confusion)
        ],
        worst=worst,
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


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
    return ImageView(
        score=score,
        class_iou={
            label: float(value)
            for label, value in zip(record.labels, iou, strict=True)
            if not np.isnan(value)
        },
        picture=_data_uri(Image.fromarray(small.image_rgb)),
        truth=_data_uri(draw_overlay(small.image_rgb, small.truth, record.classes, shown=())),
        prediction=_data_uri(
            draw_overlay(small.image_rgb, small.predicted, record.classes, shown=())
        ),
        difference=_data_uri(Image.fromarray(draw_difference(small))),
    )


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


def _data_uri(picture: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode('ascii')}"
