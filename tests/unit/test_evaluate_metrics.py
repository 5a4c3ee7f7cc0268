"""The figures: by hand, and against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.runtime.record import CoveredMean
from segserve.training.data import IGNORED
from segserve.training.report import PixelCounts, by_label, count_pixels

LABELS = ("a", "b", "c")


def counted(confusion, images_with, boundary=((1, 1, 1), (2, 4, 8))):
    return PixelCounts(np.array(confusion), np.array(boundary), np.array(images_with))


def label_maps(seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Truth with a tenth of its pixels ignored, and a prediction that is right about half of the
    time.
    """
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 24, 2)
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.5, truth, rng.integers(0, classes, shape)).astype(
        np.uint8
    )
    truth[rng.random(shape) < 0.1] = IGNORED
    return truth, predicted


def test_counts_figures_by_hand():
    result = counted([[6, 2, 0], [1, 3, 0], [0, 0, 0]], [2, 1, 0])
    assert by_label(LABELS, result.iou) == pytest.approx({"a": 6 / 9, "b": 3 / 6})
    assert result.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert result.frequency_weighted_iou == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)
    assert result.pixel_accuracy == pytest.approx(9 / 12)
    assert result.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert by_label(LABELS, result.boundary_iou) == {"a": 0.5, "b": 0.25}
    assert result.mean_boundary_iou == pytest.approx(0.375)


def test_counts_covered_mean_is_over_classes_in_enough_images():
    result = counted([[6, 2, 0], [1, 3, 0], [0, 0, 0]], [2, 1, 0])
    both = (6 / 9 + 3 / 6) / 2
    assert result.covered_mean(1) == CoveredMean(min_images=1, classes=2, mean_iou=both)
    assert result.covered_mean(2) == CoveredMean(min_images=2, classes=1, mean_iou=6 / 9)
    assert result.covered_mean(3) is None


def test_counts_class_that_is_only_predicted_costs_the_others_and_has_no_figure():
    result = counted([[3, 0, 1], [0, 0, 0], [0, 0, 0]], [1, 0, 0])
    assert by_label(LABELS, result.iou) == {"a": 0.75}
    assert result.mean_iou == 0.75
    assert by_label(LABELS, result.boundary_iou) == {"a": 0.5}


def test_counts_contour_that_is_all_ignored_has_no_boundary_figure():
    result = counted([[3, 0, 0], [0, 2, 0], [0, 0, 0]], [1, 1, 0], boundary=((0, 0, 0), (0, 0, 0)))
    assert by_label(LABELS, result.boundary_iou) == {}
    assert result.mean_boundary_iou is None


@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 3, 21, 255]))
def test_count_pixels_equals_one_by_one(seed, classes):
    truth, predicted = label_maps(seed, classes)
    counts = count_pixels(truth, predicted, classes)
    expected = np.zeros((classes, classes), np.int64)
    for true, found in zip(truth.ravel(), predicted.ravel(), strict=True):
        if true != IGNORED:
            expected[true, found] += 1
    assert np.array_equal(counts.confusion, expected)
    assert np.array_equal(counts.images_with, expected.sum(1) > 0)


@given(seed=st.integers(0, 10_000))
def test_figures_of_summed_counts_equal_those_of_all_pixels(seed):
    pairs = [label_maps(seed + index) for index in range(3)]
    counts = sum((count_pixels(*pair, 3) for pair in pairs), PixelCounts.none(3))
    truth, predicted = (np.concatenate([pair[part].ravel() for pair in pairs]) for part in (0, 1))
    known = truth != IGNORED
    truth, predicted = truth[known], predicted[known]
    if not truth.size:
        return
    present = sorted(set(truth.tolist()))
    iou = [
        ((truth == i) & (predicted == i)).sum() / ((truth == i) | (predicted == i)).sum()
        for i in present
    ]
    recall = [np.mean(predicted[truth == i] == i) for i in present]
    assert list(by_label(LABELS, counts.iou).values()) == pytest.approx(iou)
    assert counts.mean_iou == pytest.approx(np.mean(iou))
    assert counts.mean_accuracy == pytest.approx(np.mean(recall))
    assert counts.pixel_accuracy == pytest.approx(np.mean(truth == predicted))
    weights = [np.mean(truth == i) for i in present]
    assert counts.frequency_weighted_iou == pytest.approx(np.dot(weights, iou))


@pytest.mark.parametrize("unknown", [3, 254], ids=["first beyond the classes", "last below 255"])
def test_count_pixels_unknown_label_raises_and_names_it(unknown):
    truth = np.array([[0, unknown]], np.uint8)
    with pytest.raises(
        ValueError,
        match=rf"^labels \[{unknown}\] are none of the model's 3 classes: expected 0 to 2",
    ):
        count_pixels(truth, np.zeros_like(truth), 3)
