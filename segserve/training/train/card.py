"""The model card, `README.md` of a model folder: record, accuracy, notes and recipes as text."""

from pathlib import Path
from string import Template

from PIL import Image

from ...recipe import RECIPE_FILE
from ...runtime.encode.mask import encode_jpeg
from ...runtime.encode.overlay import draw_overlay
from ...runtime.files import write_whole
from ...runtime.network.weights import build_network
from ...runtime.record import RECORD_FILE, Accuracy, ModelRecord, read_record, write_record
from ...runtime.settings import CONFIG_FILE
from ..data import LabelledImages
from ..evaluate.measure import Predictor, measure, offline_model, segmented
from ..evaluate.report import EvaluationReport, as_accuracy, build_report, reduced

CARD_FILE = "README.md"
NOTES_FILE = "NOTES.md"
PICTURE_FILE = "predictions.jpg"

TRAIN_COMMAND, EVALUATE_COMMAND = "segserve train", "segserve evaluate --write"

_PICTURE_ROWS, _MIN_IMAGES = 4, 20

_CARD = Template("""\
# $summary

Version $version. Written by `$command`; edit the files beside it instead.

| | |
|---|---|
| network | $backbone, output stride $stride, `$head` head, atrous rates $rates, $parameters \
million parameters |
| input | $side side at $size_px pixels, RGB |
| classes | $classes |
| weights | `$weights`, half precision, SHA-256 `$sha256` |
| licence | $licence |
| origin | $source |

## Accuracy

On $dataset ($images images) at the images' own size: mean IoU **$mean_iou** over the classes \
present, pixel
accuracy $pixel_accuracy.
$further_figures
$calibration$class_figures
$picture
$notes
## Recipe

$recipes""")


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
    text = _CARD.substitute(
        _facts(record, accuracy),
        command=command,
        picture=_picture(folder),
        notes=notes.read_text(encoding="utf-8") if notes.exists() else "",
        recipes=_recipes(folder),
    )
    write_whole(folder / CARD_FILE, text)


def _facts(record: ModelRecord, accuracy: Accuracy) -> dict[str, object]:
    architecture, weights = record.architecture, record.weights
    network = build_network(architecture, len(record.classes))
    return {
        "summary": record.summary,
        "version": record.version,
        "backbone": architecture.backbone,
        "stride": architecture.output_stride,
        "head": architecture.head,
        "rates": ", ".join(map(str, architecture.aspp_rates)),
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}",
        "side": record.input.resize.side,
        "size_px": record.input.resize.size_px,
        "classes": ", ".join(record.labels),
        "weights": weights.file if weights else "none",
        "sha256": weights.sha256 if weights else "none",
        "licence": record.licence,
        "source": record.source,
        "dataset": accuracy.dataset,
        "images": accuracy.images,
        "mean_iou": f"{accuracy.mean_iou:.3f}",
        "pixel_accuracy": f"{accuracy.pixel_accuracy:.3f}",
        "further_figures": _further_figures(accuracy),
        "calibration": _calibration(record),
        "class_figures": _class_figures(accuracy),
    }


def _further_figures(accuracy: Accuracy) -> str:
    """A list of the figures that are optional in a record; empty if it has none of them."""
    figures = {
        "frequency-weighted IoU": accuracy.frequency_weighted_iou,
        "mean accuracy": accuracy.mean_accuracy,
        "mean boundary IoU": accuracy.mean_boundary_iou,
    }
    if covered := accuracy.covered:
        name = (
            f"mean IoU over the {covered.classes} classes in at least {covered.min_images} images"
        )
        figures = {name: covered.mean_iou, **figures}
    lines = [f"- {name}: {value:.3f}\n" for name, value in figures.items() if value is not None]
    return "".join(["\n", *lines]) if lines else ""


def _calibration(record: ModelRecord) -> str:
    if record.calibration is None:
        return ""
    found = record.calibration
    return (
        f"Confidences are calibrated with temperature {found.temperature:g}: their expected "
        f"calibration error is {found.ece:.3f}, and {found.ece_before:.3f} without it, on every "
        f"second of {found.images} images of {found.dataset}.\n\n"
    )


def _class_figures(accuracy: Accuracy) -> str:
    """A table of the classes, the best first, with boundary IoU if the record has it."""
    boundary = accuracy.class_boundary_iou
    lines = (
        ["| class | IoU |", "|---|---|"]
        if boundary is None
        else ["| class | IoU | boundary IoU |", "|---|---|---|"]
    )
    for label, iou in sorted(accuracy.class_iou.items(), key=lambda item: -item[1]):
        cells = [label, f"{iou:.3f}"]
        if boundary is not None:
            cells.append(f"{boundary[label]:.3f}" if label in boundary else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _picture(folder: Path) -> str:
    """The folder's picture of predictions, if there is one."""
    if not (folder / PICTURE_FILE).exists():
        return ""
    return f"\n![Pictures, their true classes and the predicted ones]({PICTURE_FILE})\n"


def _recipes(folder: Path) -> str:
    """The text of the folder's recipes, that of the first stage first."""
    others = (
        path
        for path in folder.glob("*.yaml")
        if path.name not in (RECORD_FILE, CONFIG_FILE, RECIPE_FILE)
    )
    recipes = [path for path in (folder / RECIPE_FILE, *sorted(others)) if path.exists()]
    return "\n".join(
        f"`{path.name}`:\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n" for path in recipes
    )


def _predictions(data: LabelledImages, predictor: Predictor) -> Image.Image:
    """The split's first images in rows: picture, true classes, predicted classes."""
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
