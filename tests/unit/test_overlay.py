"""The picture to look at: tinted regions, outlines and names."""

import numpy as np
import pytest

from segserve.runtime.encode.overlay import bright, draw_overlay
from segserve.runtime.record import ClassInfo

from .images import noise
from .tiny import tiny_record

CLASSES = tiny_record().classes
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def halves(height_px: int, width_px: int, class_id: int) -> np.ndarray:
    """A label map with the class in its right half."""
    label_map = np.zeros((height_px, width_px), np.uint8)
    label_map[:, width_px // 2 :] = class_id
    return label_map


def drawn(image: np.ndarray, label_map: np.ndarray, shown=(), **options) -> np.ndarray:
    return np.asarray(draw_overlay(image, label_map, CLASSES, list(shown), **options))


def test_draw_overlay_background_stays_and_classes_are_tinted():
    image = noise(8, 20)
    picture = drawn(image, halves(8, 20, 2))
    assert np.array_equal(picture[:, :9], image[:, :9])
    expected = 0.55 * image[:, 11:] + 0.45 * np.array(bright(CLASSES[2].color))
    assert np.abs(picture[:, 11:] - expected).max() <= 2


@pytest.mark.parametrize("value", [0, 128, 255])
def test_draw_overlay_outline_is_white_within_the_region_and_black_around_it(value):
    image = np.full((300, 400, 3), value, np.uint8)
    picture = drawn(image, halves(300, 400, 2))
    assert (picture[:, 199] == BLACK).all()
    assert (picture[:, 200] == WHITE).all()
    assert (picture[:, :198] == value).all()
    label_map = np.zeros((300, 400), np.uint8)
    label_map[100:200, 100:300] = 2
    picture = drawn(image, label_map)
    assert (picture[100, 100:300] == WHITE).all()
    assert (picture[200, 100:300] == BLACK).all()


def test_draw_overlay_without_colour_is_the_image():
    image = noise(30, 40)
    assert np.array_equal(drawn(image, halves(30, 40, 2), opacity=0), image)


@pytest.mark.parametrize("value", [0, 255])
def test_draw_overlay_extreme_colours_do_not_overflow(value):
    classes = [ClassInfo(label="a", color=(0, 0, 0)), ClassInfo(label="b", color=(255, 255, 255))]
    image, label_map = np.full((2, 2, 3), value, np.uint8), np.ones((2, 2), np.uint8)
    picture = np.asarray(draw_overlay(image, label_map, classes, []))
    assert np.abs(picture - (0.55 * value + 0.45 * 255)).max() <= 2


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 3), (300, 400)], ids=str)
def test_draw_overlay_any_size_keeps_size_and_leaves_its_inputs(size_hw):
    image, label_map = noise(*size_hw), halves(*size_hw, 1)
    before = label_map.copy()
    picture = draw_overlay(image, label_map, CLASSES, [1])
    assert (picture.mode, picture.size) == ("RGB", size_hw[::-1])
    assert np.array_equal(image, noise(*size_hw))
    assert np.array_equal(label_map, before)


def test_draw_overlay_name_lies_within_the_widest_region_of_its_class():
    image = np.full((300, 400, 3), 128, np.uint8)
    label_map = np.zeros((300, 400), np.uint8)
    label_map[10:14, 10:390] = 2  # as many pixels in a row, but thin
    label_map[150:290, 220:390] = 2
    plain, named = drawn(image, label_map), drawn(image, label_map, [2])
    rows, columns = np.nonzero((plain != named).any(axis=-1))
    assert rows.min() > 150
    assert columns.min() > 220
    assert (abs(rows.mean() - 220), abs(columns.mean() - 305)) < (15, 30)
    assert (named[rows, columns] == WHITE).all(axis=-1).any()


def test_draw_overlay_name_at_the_edge_stays_in_the_picture():
    image, label_map = np.full((200, 200, 3), 128, np.uint8), np.zeros((200, 200), np.uint8)
    label_map[196:, 197:] = 2
    plain, named = drawn(image, label_map), drawn(image, label_map, [2])
    rows, columns = np.nonzero((plain != named).any(axis=-1))
    assert rows.max() < 199
    assert columns.max() < 199


def test_draw_overlay_picture_too_small_for_a_name_has_none():
    image, label_map = noise(10, 10), np.full((10, 10), 2, np.uint8)
    assert np.array_equal(drawn(image, label_map, [2]), drawn(image, label_map))


def test_bright_keeps_the_hue():
    assert bright((64, 0, 0)) == (255, 0, 0)
    assert bright((64, 128, 0)) == (128, 255, 0)
    assert bright((0, 0, 0)) == (255, 255, 255)
