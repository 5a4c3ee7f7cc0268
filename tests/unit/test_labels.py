"""What `classes`, `threshold` and `confidence` make of the class of every pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from segserve.runtime.inference import labels as labels_module
from segserve.runtime.inference.labels import LabelRule, SegmentedImage, choose_labels

from .test_segmenter import busy_logits, summarised

SIZE_HW = (37, 41)
LOGITS = busy_logits()


def top_probabilities() -> np.ndarray:
    """float64 (H, W), without the module under test."""
    full = F.interpolate(LOGITS[None].double(), size=SIZE_HW, mode="bilinear")[0]
    return full.softmax(0).numpy().max(axis=0)


def chosen(**rule) -> SegmentedImage:
    return choose_labels(LOGITS, *SIZE_HW, LabelRule(**rule))


def assert_table_fits(segmentation: SegmentedImage) -> None:
    found = [(s.id, s.pixels, s.fraction, s.box_xyxy, s.confidence) for s in segmentation.classes]
    expected = summarised(segmentation.label_map, top_probabilities())
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    assert [row[4] for row in found] == pytest.approx([row[4] for row in expected], abs=1e-4)


def test_choose_labels_rule_that_changes_nothing_gives_the_same_segmentation():
    plain, ruled = chosen(), chosen(kept=frozenset(range(4)), threshold=0.0)
    assert len(plain.classes) == 4
    assert np.array_equal(plain.label_map, ruled.label_map)
    assert plain.classes == ruled.classes
    assert plain.confidence_map is ruled.confidence_map is None


@given(st.sets(st.integers(0, 3)))
def test_choose_labels_other_classes_than_those_kept_become_background(kept):
    plain, ruled = chosen(), chosen(kept=frozenset(kept))
    assert np.array_equal(
        ruled.label_map, np.where(np.isin(plain.label_map, list(kept)), plain.label_map, 0)
    )
    assert_table_fits(ruled)


@given(st.floats(0, 1))
def test_choose_labels_pixels_below_the_threshold_become_background(threshold):
    plain, ruled, top = chosen(), chosen(threshold=threshold), top_probabilities()
    certain = np.abs(top - threshold) > 1e-5
    expected = np.where(top >= threshold, plain.label_map, 0)
    assert np.array_equal(ruled.label_map[certain], expected[certain])
    assert_table_fits(ruled)


def test_choose_labels_threshold_that_a_probability_equals_keeps_the_pixel():
    logits = torch.zeros(2, 1, 1)
    logits[1] = 1e-9  # class 1, with a probability of exactly a half
    assert choose_labels(logits, 3, 3, LabelRule(threshold=0.5)).label_map.all()
    assert not choose_labels(logits, 3, 3, LabelRule(threshold=0.5000001)).label_map.any()


@pytest.mark.parametrize(
    "rule", [{}, {"kept": frozenset({1})}, {"threshold": 0.7}], ids=["plain", "kept", "threshold"]
)
def test_choose_labels_confidence_is_that_of_the_top_class_whatever_became_of_it(rule):
    segmentation = chosen(keep_confidence=True, **rule)
    assert segmentation.confidence_map.dtype == np.uint8
    difference = segmentation.confidence_map.astype(float) - 255 * top_probabilities()
    assert np.abs(difference).max() <= 0.5 + 1e-3
    assert np.array_equal(segmentation.label_map, chosen(**rule).label_map)


@pytest.mark.parametrize("strip_pixels", [1, 7, 41, 37 * 41], ids=str)
def test_choose_labels_rule_does_not_depend_on_the_strip_size(monkeypatch, strip_pixels):
    rule = {"kept": frozenset({1, 2}), "threshold": 0.6, "keep_confidence": True}
    expected = chosen(**rule)
    monkeypatch.setattr(labels_module, "_STRIP_PIXELS", strip_pixels)
    got = chosen(**rule)
    assert np.array_equal(got.label_map, expected.label_map)
    assert got.confidence_map.flags.c_contiguous
    assert (
        np.abs(got.confidence_map.astype(int) - expected.confidence_map).max() <= 1
    )  # rounding at a half


def test_choose_labels_confidences_do_not_depend_on_the_number_of_threads():
    logits = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    before, confidences = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            confidences.append(
                [summary.confidence for summary in choose_labels(logits, 600, 900).classes]
            )
    finally:
        torch.set_num_threads(before)
    assert confidences[0] == confidences[1] == confidences[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "size_hw", [(37, 41), (2000, 3000), (3, 2**21 + 1)], ids=["one strip", "several", "columns"]
)
def test_choose_labels_on_a_gpu_gives_the_labels_of_the_cpu(size_hw):
    rule = LabelRule(keep_confidence=True)
    expected, got = (choose_labels(LOGITS.to(device), *size_hw, rule) for device in ("cpu", "cuda"))
    assert (got.label_map == expected.label_map).mean() > 0.9999
    assert np.abs(got.confidence_map.astype(int) - expected.confidence_map).max() <= 1
    assert [summary.id for summary in got.classes] == [summary.id for summary in expected.classes]
