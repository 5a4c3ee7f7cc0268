"""The end of a run: weights, record, and where there is a split to measure on, the card and a
picture.
"""

from pathlib import Path

from PIL import Image

from ...runtime.encode.mask import encode_jpeg
from ...runtime.encode.overlay import draw_overlay
from ...runtime.network.build import SegmentationNetwork
from ...runtime.record import read_record
from ..data import LabelledImages
from ..evaluate.measure import Predictor, measure, segmented
from ..evaluate.offline import offline_model
from ..evaluate.pictures import reduced
from ..evaluate.report import EvaluationReport, as_accuracy, build_report
from .card import PICTURE_FILE, write_card
from .export import export_weights

_PICTURE_ROWS, _MIN_IMAGES = 4, 20


def write_model(network: SegmentationNetwork, folder: Path) -> None:
    """Writes the weights into the model folder and their SHA-256 into its record; ValueError as in
    `export_weights`.
    """
    export_weights(network, read_record(folder), folder)


def measure_model(
    folder: Path, data: LabelledImages, *, dataset: str, split: str
) -> EvaluationReport:
    """Measures the folder's model as it will be served, and writes record, card and a picture of
    predictions.
    """
    with offline_model(folder) as predictor:
        evaluation = measure(data, predictor, lambda _finished: None)
        picture = _predictions(data, predictor)
    report = build_report(evaluation, predictor, data=dataset, split=split, min_images=_MIN_IMAGES)
    (folder / PICTURE_FILE).write_bytes(encode_jpeg(picture))
    write_card(folder, as_accuracy(report))
    return report


def _predictions(data: LabelledImages, predictor: Predictor) -> Image.Image:
    """The split's first images: picture, true classes, predicted classes, side by side."""
    classes = predictor.record.classes
    rows = []
    for name in data.names[:_PICTURE_ROWS]:
        image = reduced(segmented(data, predictor, name))
        labelled = [
            draw_overlay(image.image_rgb, labels, classes, shown=()) for labels in image[1:]
        ]
        rows.append(_joined([Image.fromarray(image.image_rgb), *labelled], across=True))
    return _joined(rows, across=False)


def _joined(pictures: list[Image.Image], *, across: bool) -> Image.Image:
    widths, heights = (
        [picture.width for picture in pictures],
        [picture.height for picture in pictures],
    )
    size = (sum(widths), max(heights)) if across else (max(widths), sum(heights))
    joined = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        joined.paste(picture, (sum(widths[:index]), 0) if across else (0, sum(heights[:index])))
    return joined
