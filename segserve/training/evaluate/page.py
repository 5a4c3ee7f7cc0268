"""The figures and the worst images as one HTML file, which needs nothing beside it and runs no
script.
"""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...runtime.files import write_whole
from ...runtime.record import ModelRecord
from ..data import LabelledImages
from .measure import Predictor, segmented
from .metrics import ImageScore
from .pictures import ImageView, view_image
from .report import EvaluationReport


def write_page(
    path: Path,
    report: EvaluationReport,
    scores: Sequence[ImageScore],
    data: LabelledImages,
    predictor: Predictor,
) -> None:
    """Writes the page with these images, each segmented once more; it appears under its name only
    when it is whole.
    """
    views = [
        view_image(score, segmented(data, predictor, score.name), predictor.record)
        for score in scores
    ]
    write_whole(path, render_page(report, predictor.record, views))


def render_page(report: EvaluationReport, record: ModelRecord, worst: Sequence[ImageView]) -> str:
    """The page; every name in it is escaped.

    Args:
        record: for the colours of the classes.
        worst: the images to show, in this order.
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
