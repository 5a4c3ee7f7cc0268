"""The document and the page of an evaluation."""

import io
import json
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.files import write_whole
from segserve.runtime.record import ClassInfo
from segserve.training.data import IGNORED
from segserve.training.measure import EvaluatedImage, measure
from segserve.training.pages import (
    draw_difference,
    reduced,
    render_page,
    view_image,
    write_page,
)
from segserve.training.report import (
    EvaluationReport,
    PixelCounts,
    as_accuracy,
    by_label,
    count_pixels,
    write_report,
)

from .evaluated import SIDE_PX, color_predictor, write_images, write_noisy
from .tiny import tiny_record

HOSTILE = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """What the tests look at: tags with attributes, and the text by enclosing tag."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data.strip()))

    def attributes(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_noisy(tmp_path_factory.mktemp("report"))


def measured(data, predictor=None, dataset="squares", min_images=1):
    predictor = predictor or color_predictor()
    return measure(data, predictor, lambda _: None, dataset=dataset, min_images=min_images)


@pytest.fixture(scope="module")
def report(data):
    return measured(data, min_images=4)


@pytest.fixture(scope="module")
def counts(data):
    """The counts of all images, one by one."""
    total = PixelCounts.none(3)
    for name in data.names:
        image_rgb, truth = data.pair(name)
        total += count_pixels(truth, color_predictor().label_map(name, image_rgb), 3)
    return total


def image(seed: int = 0, size_hw: tuple[int, int] = (30, 20)) -> EvaluatedImage:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, size_hw).astype(np.uint8)
    truth[:2] = IGNORED
    return EvaluatedImage(
        rng.integers(0, 256, (*size_hw, 3)).astype(np.uint8), truth, np.roll(truth, 1) % 3
    )


def pixels(uri: str) -> np.ndarray:
    head, content = uri.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(b64decode(content))) as picture:
        return np.array(picture)


def test_report_holds_every_figure(data, counts, report):
    labels = tiny_record().labels
    assert (report.data, report.split) == ("squares", "dev")
    assert report.mean_iou == counts.mean_iou
    assert report.covered == counts.covered_mean(4)
    assert (report.covered.classes, report.images) == (2, 5)
    assert report.frequency_weighted_iou == counts.frequency_weighted_iou
    assert report.mean_boundary_iou == counts.mean_boundary_iou
    assert (report.pixel_accuracy, report.mean_accuracy) == (
        counts.pixel_accuracy,
        counts.mean_accuracy,
    )
    assert {row.label: row.iou for row in report.classes} == by_label(labels, counts.iou)
    assert report.class_boundary_iou == by_label(labels, counts.boundary_iou)
    assert [row.images for row in report.classes] == [5, 5, 3]
    assert report.pixels == sum(row.pixels for row in report.classes) == np.sum(report.confusion)
    assert [*report.image_mean_iou] == data.names


def test_report_worst_come_first_and_names_settle_ties(report):
    scores = {"z": 0.5, "y": 0.1, "x": 0.5, "w": 0.9}
    changed = report.model_copy(update={"image_mean_iou": scores})
    assert changed.worst(3) == [("y", 0.1), ("x", 0.5), ("z", 0.5)]
    assert changed.worst(0) == []


def test_report_class_that_is_absent_has_no_figures(tmp_path):
    data = write_images(tmp_path, {"a": np.zeros((SIDE_PX, SIDE_PX), np.uint8)})
    absent = measured(data).classes[2]
    assert (absent.images, absent.pixels, absent.iou, absent.accuracy, absent.boundary_iou) == (
        0,
        0,
        None,
        None,
        None,
    )


def test_report_json_round_trip(tmp_path, report):
    write_report(tmp_path / "report.json", report)
    text = (tmp_path / "report.json").read_text()
    assert EvaluationReport.model_validate_json(text) == report
    assert json.loads(text)["format_version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_report_as_accuracy_rounds_what_was_measured(report):
    accuracy = as_accuracy(report)
    assert (accuracy.dataset, accuracy.images) == ("squares dev", 5)
    assert accuracy.mean_iou == round(report.mean_iou, 4)
    assert accuracy.covered.mean_iou == round(report.covered.mean_iou, 4)
    assert accuracy.class_iou == {label: round(iou, 4) for label, iou in report.class_iou.items()}
    assert accuracy.class_boundary_iou.keys() == accuracy.class_iou.keys()
    assert accuracy.mean_boundary_iou == round(report.mean_boundary_iou, 4)


def test_write_whole_that_fails_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "page.html"
    write_whole(path, "before")
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        write_whole(path, "half" * 10_000 + "\ud800")
    assert path.read_text() == "before"


def test_page_shows_the_worst_first_with_four_pictures_each(tmp_path, report, data):
    write_page(tmp_path / "page.html", report, 3, data, color_predictor())
    page = Page((tmp_path / "page.html").read_text())
    assert page.open == []
    by_score = sorted(report.image_mean_iou.items(), key=lambda item: item[1])
    assert page.text("h3") == [f"{name}: {mean_iou:.3f}" for name, mean_iou in by_score[:3]]
    assert len(page.attributes("img")) == 12
    assert page.text("figcaption") == ["picture", "truth", "prediction", "difference"] * 3
    assert all(
        pixels(attributes["src"]).shape == (64, 64, 3) for attributes in page.attributes("img")
    )


def test_page_shows_the_metrics_and_needs_no_other_file(report):
    text = render_page(report, tiny_record(), [])
    page = Page(text)
    figures = [report.mean_iou, report.covered.mean_iou, report.frequency_weighted_iou]
    figures += [report.mean_boundary_iou, report.pixel_accuracy, report.mean_accuracy]
    assert page.text("dd") == [f"{figure:.3f}" for figure in figures]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "img", "h3"})
    assert "http" not in text
    cells = page.text("td")
    assert f"{report.classes[1].iou:.3f}" in cells
    share = report.confusion[0][1] / report.classes[0].pixels
    assert f"{100 * share:.0f}" in cells


def test_page_names_classes_that_are_only_labelled_or_only_predicted_and_no_others(tmp_path):
    data = write_images(tmp_path, {"a": np.ones((SIDE_PX, SIDE_PX), np.uint8)})
    never_found = replace(
        color_predictor(),
        label_map=lambda _name, image_rgb: np.zeros(image_rgb.shape[:2], np.uint8),
    )
    report = measured(data, never_found)
    headings = Page(render_page(report, tiny_record(), [])).text("th")
    assert headings.count("cat") == 3  # a row of figures, a row and a column of the matrix
    assert headings.count("background") == 1  # a column
    assert "dog" not in headings


def test_page_escapes_every_name(report):
    record = tiny_record(
        classes=tuple(ClassInfo(label=f"{HOSTILE}{i}", color=(i, 0, 0)) for i in range(3))
    )
    rows = tuple(row.model_copy(update={"label": f"{HOSTILE}{row.id}"}) for row in report.classes)
    hostile = report.model_copy(
        update={
            "classes": rows,
            "model": HOSTILE,
            "data": HOSTILE,
            "split": HOSTILE,
            "server": HOSTILE,
        }
    )
    view = {"name": HOSTILE, "mean_iou": 0.5} | view_image(image(), record)
    page = Page(render_page(hostile, record, [view]))
    assert page.open == []
    assert not page.attributes("script")
    assert page.text("h3") == [f"{HOSTILE}: 0.500"]
    assert f"picture of {HOSTILE}" in [attributes["alt"] for attributes in page.attributes("img")]
    assert f"{HOSTILE}2" in page.text("th")


def border(label_map: np.ndarray) -> np.ndarray:
    """The pixels beside a pixel of another class."""
    moved = [np.roll(label_map, step, axis) for step in (-1, 1) for axis in (0, 1)]
    return np.any([other != label_map for other in moved], axis=0)


def test_view_image_pictures_show_what_they_are_called(data):
    image_rgb, _ = data.pair("p0")
    predicted = color_predictor().label_map("p0", image_rgb)
    truth = np.where(predicted == 2, 1, predicted).astype(np.uint8)
    view = view_image(EvaluatedImage(image_rgb, truth, predicted), tiny_record())
    assert view["class_iou"].keys() == {"background", "cat"}
    assert view["class_iou"]["background"] == 1
    assert np.abs(pixels(view["picture"]).astype(int) - image_rgb).mean() < 10
    seen, true = pixels(view["prediction"]).astype(int), pixels(view["truth"]).astype(int)
    differs = np.abs(seen - true).max(axis=2) > 16
    inner = ~border(predicted)  # the pictures have outlines
    assert inner.mean() > 0.8
    assert (differs == (predicted == 2))[inner].mean() > 0.95
    red = pixels(view["difference"]).astype(int)
    assert ((red[..., 0] - red[..., 1] > 60) == (predicted == 2)).mean() > 0.95


def test_draw_difference_colours_wrong_right_and_ignored_pixels():
    grey = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, IGNORED]], np.uint8)
    right, wrong, ignored = draw_difference(
        EvaluatedImage(grey, labels, np.array([[0, 2, 2]], np.uint8))
    )[0].tolist()
    assert right[0] == right[1] == right[2]
    assert wrong[0] > 150 > 60 > wrong[1]
    assert ignored == [255, 255, 255]


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [((30, 20), (30, 20)), ((400, 1), (400, 1)), ((1600, 800), (400, 200)), ((3, 4000), (1, 400))],
    ids=["small", "as large as may be", "large", "a thin row"],
)
def test_reduced_keeps_small_images_and_never_mixes_labels(size_hw, expected):
    large = image(size_hw=size_hw)
    small = reduced(large)
    assert small.image_rgb.shape == (*expected, 3)
    assert small.truth.shape == small.predicted.shape == expected
    assert set(np.unique(small.truth)) <= set(np.unique(large.truth))
