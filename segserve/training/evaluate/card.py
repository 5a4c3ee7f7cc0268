"""The model card, `README.md` of a model folder: record, accuracy, notes and recipes as text."""

from pathlib import Path

import numpy as np
from PIL import Image

from ...recipe import RECIPE_FILE
from ...runtime.encode.mask import encode_jpeg
from ...runtime.encode.overlay import draw_overlay
from ...runtime.files import write_whole
from ...runtime.network.weights import build_network
from ...runtime.record import RECORD_FILE, Accuracy, read_record, write_record
from ...runtime.settings import CONFIG_FILE
from ..data import LabelledImages
from .measure import Predictor, measure, offline_model, segmented
from .report import EvaluationReport, as_accuracy, build_report, page_templates, reduced

CARD_FILE = "README.md"
NOTES_FILE = "NOTES.md"
PICTURE_FILE = "predictions.jpg"

TRAIN_COMMAND, EVALUATE_COMMAND = "segserve train", "segserve evaluate --write"

_PICTURE_ROWS, _MIN_IMAGES = 4, 20


def measure_model(folder: Path, data: LabelledImages, *, dataset: str) -> EvaluationReport:
    """Measures the folder's model after training, as it will be served.

    Writes the accuracy into the record, a picture of predictions and the card.
    """
    with offline_model(folder) as predictor:
        evaluation = measure(data, predictor, lambda _finished: None)
        picture = _predictions(data, predictor)
    report = build_report(
        evaluation, predictor, data=dataset, split=data.split, min_images=_MIN_IMAGES
    )
    write_whole(folder / PICTURE_FILE, encode_jpeg(picture))
    write_card(folder, as_accuracy(report), TRAIN_COMMAND)
    return report


def write_card(folder: Path, accuracy: Accuracy, command: str) -> None:
    """Writes the accuracy into the folder's record, and the card. The card contains `NOTES.md`.

    Args:
        command: the command that writes the card, named in it.
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
    """The figures that are optional in a record, by their names for people."""
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
        labelled = [
            np.asarray(draw_overlay(image.image_rgb, labels, predictor.record.classes, shown=()))
            for labels in image[1:]
        ]
        rows.append(np.hstack([image.image_rgb, *labelled]))
    width_px = max(row.shape[1] for row in rows)
    white = [
        np.pad(row, ((0, 0), (0, width_px - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return Image.fromarray(np.vstack(white))
