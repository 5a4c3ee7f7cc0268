"""The picture to look at."""

import numpy as np
import pytest

from segserve.runtime.encode.overlay import draw_overlay
from segserve.runtime.record import ClassInfo, read_record

from ..conftest import EMBEDDED
from .images import noise
from .tiny import tiny_record

CLASSES = tiny_record().classes


def test_draw_overlay_background_stays_and_classes_are_tinted():
    image = noise(4, 6)
    label_map = np.zeros((4, 6), np.uint8)
    label_map[:, 3:] = 2
    drawn = np.asarray(draw_overlay(image, label_map, CLASSES, [2, 0]))
    assert np.array_equal(drawn[:, :3], image[:, :3])
    expected = 0.45 * image[:, 3:] + 0.55 * np.array(CLASSES[2].color)
    assert np.abs(drawn[:, 3:] - expected).max() <= 2


@pytest.mark.parametrize("value", [0, 255])
def test_draw_overlay_extreme_colours_do_not_overflow(value):
    classes = [ClassInfo(label="a", color=(0, 0, 0)), ClassInfo(label="b", color=(255, 255, 255))]
    drawn = np.asarray(
        draw_overlay(np.full((2, 2, 3), value, np.uint8), np.ones((2, 2), np.uint8), classes, [])
    )
    assert np.abs(drawn - (0.45 * value + 0.55 * 255)).max() <= 2


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (2000, 3), (300, 400)], ids=str)
def test_draw_overlay_any_size_keeps_size_and_leaves_its_inputs(size_hw):
    image, label_map = noise(*size_hw), np.ones(size_hw, np.uint8)
    picture = draw_overlay(image, label_map, CLASSES, [1])
    assert (picture.mode, picture.size) == ("RGB", size_hw[::-1])
    assert np.array_equal(image, noise(*size_hw))
    assert (label_map == 1).all()


def test_draw_overlay_legend_stands_in_the_top_left_corner_with_the_class_colour():
    image = np.full((300, 400, 3), 128, np.uint8)
    label_map = np.zeros((300, 400), np.uint8)
    label_map[299, 399] = 2
    drawn = np.asarray(draw_overlay(image, label_map, CLASSES, [2]))
    changed = (drawn != image).any(axis=-1)
    changed[299, 399] = False
    ys, xs = np.nonzero(changed)
    assert (drawn[ys, xs] == CLASSES[2].color).all(axis=-1).any()
    assert ys.max() < 60
    assert xs.max() < 120


def test_draw_overlay_legend_of_six_classes_fits_a_photograph():
    classes, shown = read_record(EMBEDDED).classes, [0, 15, 16, 3, 11, 20, 1]
    image = np.full((375, 500, 3), 127, np.uint8)
    drawn = np.asarray(draw_overlay(image, np.zeros((375, 500), np.uint8), classes, shown))
    for class_id in shown[1:]:
        assert (drawn == classes[class_id].color).all(axis=-1).any(), classes[class_id].label


def test_draw_overlay_picture_too_small_for_a_legend_has_none():
    image = noise(10, 10)
    drawn = np.asarray(draw_overlay(image, np.zeros((10, 10), np.uint8), CLASSES, [1, 2]))
    assert np.array_equal(drawn, image)
