"""Boundary IoU: known cases, and the authors' definition by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.training.data import IGNORED
from segserve.training.report import count_boundaries, near_contour, reach_px


def eroded(mask: np.ndarray) -> np.ndarray:
    """One erosion by a 3 x 3 square; outside the image is no mask."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_and.reduce(shifted)


def boundary_of(mask: np.ndarray, reach: int) -> np.ndarray:
    inner = mask
    for _ in range(reach):
        inner = eroded(inner)
    return mask & ~inner


def blobs(seed: int) -> np.ndarray:
    """Class ids 0 to 2 in blocks of random size, so that there is an inside and an outside."""
    rng = np.random.default_rng(seed)
    height, width, block = rng.integers(1, 70), rng.integers(1, 70), rng.integers(1, 20)
    coarse = rng.integers(0, 3, (-(-height // block), -(-width // block)))
    return coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8)


def square(top: int, left: int, side: int, image_px: int = 100) -> np.ndarray:
    label_map = np.zeros((image_px, image_px), np.uint8)
    label_map[top : top + side, left : left + side] = 1
    return label_map


@pytest.mark.parametrize(
    ("height_px", "width_px", "expected"),
    [(1, 1, 1), (300, 400, 10), (375, 500, 12), (500, 375, 12), (30, 40, 1)],
    ids=["one pixel", "diagonal of 500", "VOC", "VOC upright", "small"],
)
def test_reach_is_2_percent_of_the_diagonal(height_px, width_px, expected):
    assert reach_px(height_px, width_px) == expected
    assert expected == max(1, round(0.02 * math.hypot(height_px, width_px)))


@given(seed=st.integers(0, 10_000), reach=st.integers(1, 9))
def test_near_contour_is_the_part_of_every_mask_that_erosion_removes(seed, reach):
    label_map = blobs(seed)
    expected = np.logical_or.reduce(
        [boundary_of(label_map == class_id, reach) for class_id in range(3)]
    )
    assert np.array_equal(near_contour(label_map, reach), expected)


@given(seed=st.integers(0, 10_000))
def test_count_boundaries_without_ignored_pixels_is_that_of_the_paper(seed):
    truth = blobs(seed)
    predicted = np.roll(truth, 2, axis=1)
    reach = reach_px(*truth.shape)
    masks = [(boundary_of(truth == i, reach), boundary_of(predicted == i, reach)) for i in range(3)]
    agreed, either = count_boundaries(truth, predicted, 3)
    assert agreed.tolist() == [int((true & found).sum()) for true, found in masks]
    assert either.tolist() == [int((true | found).sum()) for true, found in masks]


def test_count_boundaries_identical_masks_agree_everywhere():
    truth = square(20, 30, 40)
    agreed, either = count_boundaries(truth, truth, 3)
    assert agreed.tolist() == either.tolist()
    reach = reach_px(100, 100)
    assert agreed[1] == 40**2 - (40 - 2 * reach) ** 2
    assert agreed[2] == 0


def test_count_boundaries_disjoint_masks_agree_nowhere():
    agreed, either = count_boundaries(square(5, 5, 20), square(70, 70, 20), 2)
    reach = reach_px(100, 100)
    assert agreed[1] == 0
    assert either[1] == 2 * (20**2 - (20 - 2 * reach) ** 2)


def test_count_boundaries_shifted_outline_costs_more_than_the_area():
    truth, predicted = square(20, 20, 60), square(22, 22, 60)
    agreed, either = count_boundaries(truth, predicted, 2)
    area_iou = ((truth & predicted) == 1).sum() / ((truth | predicted) == 1).sum()
    assert agreed[1] / either[1] < 0.5 < 0.85 < area_iou


def test_count_boundaries_correct_prediction_is_1_for_any_prediction_of_ignored_pixels():
    known = square(20, 20, 60)
    truth = known.copy()
    truth[(square(17, 17, 66) == 1) & (square(23, 23, 54) == 0)] = (
        IGNORED  # a band along the outline, as VOC has it
    )
    for predicted in (known, square(17, 17, 66), square(23, 23, 54)):
        agreed, either = count_boundaries(truth, predicted, 2)
        assert agreed[0] == either[0] > 0
        assert agreed[1] == either[1]
    assert count_boundaries(truth, square(23, 23, 54), 2)[1][1] > 0


def test_count_boundaries_ignored_pixels_count_in_neither_part():
    truth, predicted = square(20, 20, 60), square(20, 20, 60)
    truth[:50] = IGNORED
    agreed, either = count_boundaries(truth, predicted, 2)
    half = boundary_of(predicted == 1, reach_px(100, 100))[50:].sum()
    assert (agreed[1], either[1]) == (half, half)


def test_count_boundaries_edge_of_an_ignored_region_is_no_contour():
    """Else every prediction would be credited with it."""
    truth = np.zeros((100, 100), np.uint8)
    truth[:, 50:] = IGNORED
    agreed, either = count_boundaries(truth, np.zeros_like(truth), 1)
    reach = reach_px(100, 100)
    along_the_image = 50 * 100 - (50 - reach) * (100 - 2 * reach)
    assert agreed.tolist() == either.tolist() == [along_the_image]
