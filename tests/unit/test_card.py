"""The model card says what the record says."""

import shutil

from segserve.runtime.record import Accuracy, CoveredMean, read_record
from segserve.training.pages import EVALUATE_COMMAND, TRAIN_COMMAND, write_card
from tests.conftest import EMBEDDED


def test_card_of_the_shipped_model_is_what_its_record_makes(tmp_path):
    model = shutil.copytree(EMBEDDED, tmp_path / "model")
    write_card(model, read_record(EMBEDDED).accuracy, EVALUATE_COMMAND)
    for name in ("README.md", "model.yaml"):
        assert (model / name).read_text() == (EMBEDDED / name).read_text()


def test_card_new_accuracy_goes_into_record_and_card(tmp_path):
    model = shutil.copytree(EMBEDDED, tmp_path / "model")
    measured = Accuracy(
        dataset="own dev", images=7, mean_iou=0.4321, pixel_accuracy=0.9, class_iou={"cat": 0.4321}
    )
    write_card(model, measured, TRAIN_COMMAND)
    assert read_record(model).accuracy == measured
    card = (model / "README.md").read_text()
    assert "Version 2.0. Written by `segserve train`; edit the files beside it instead." in card
    assert "own dev (7 images)" in card
    assert "mean IoU **0.432**" in card
    assert "| cat | 0.432 |" in card
    assert "boundary" not in card.split("## Recipe")[0]


def test_card_shows_the_further_figures_that_the_record_has(tmp_path):
    model = shutil.copytree(EMBEDDED, tmp_path / "model")
    measured = Accuracy(
        dataset="own dev",
        images=7,
        mean_iou=0.4,
        covered=CoveredMean(min_images=5, classes=2, mean_iou=0.61),
        mean_boundary_iou=0.3,
        pixel_accuracy=0.9,
        class_iou={"cat": 0.4, "dog": 0.5},
        class_boundary_iou={"cat": 0.3},
    )
    write_card(model, measured, TRAIN_COMMAND)
    card = (model / "README.md").read_text()
    assert "- mean IoU over the 2 classes in at least 5 images: 0.610\n" in card
    assert "- mean boundary IoU: 0.300\n" in card
    assert "frequency-weighted" not in card
    assert (
        "| class | IoU | boundary IoU |\n|---|---|---|\n| dog | 0.500 | - |\n| cat | 0.400 | 0.300 "
        "|\n" in card
    )
