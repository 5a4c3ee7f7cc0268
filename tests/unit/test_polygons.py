"""Polygons drawn again give the mask back: exactly by COCO's rule, within the outline by
Pillow's.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from segserve.runtime.encode.polygons import encode_polygons

label_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 2)
)
blocks = label_maps.map(lambda label_map: np.kron(label_map, np.ones((3, 4), np.uint8)))
dense_maps = st.integers(
    0, 10**6
).map(  # few pixels that are not of class 1: holes in holes, and holes that touch
    lambda seed: (np.random.default_rng(seed).random((40, 50)) > 0.12).astype(np.uint8)
)

RINGS = np.zeros((31, 37), np.uint8)  # an island within a hole within an island ...
for _margin in range(0, 15, 2):
    RINGS[_margin : 31 - _margin, _margin : 37 - _margin] ^= 1

SPIRAL = np.zeros((61, 61), np.uint8)  # one outline, as long as can be
_y, _x = 60, 0
for _turn, _length in enumerate(np.repeat(range(60, 1, -2), 2)):
    _dy, _dx = ((-1, 0), (0, 1), (1, 0), (0, -1))[_turn % 4]
    for _ in range(_length):
        SPIRAL[_y, _x] = 1
        _y, _x = _y + _dy, _x + _dx

SHAPES = {
    "one pixel": np.ones((1, 1), np.uint8),
    "one pixel in the middle": np.pad(np.ones((1, 1), np.uint8), 7),
    "one pixel in the corner": np.pad(np.ones((1, 1), np.uint8), ((8, 0), (9, 0))),
    "the whole frame": np.ones((9, 13), np.uint8),
    "a row": np.ones((1, 500), np.uint8),
    "a column": np.ones((500, 1), np.uint8),
    "a hole of one pixel": 1 - np.pad(np.ones((1, 1), np.uint8), 7),
    "a hole beside the edge": 1 - np.pad(np.ones((3, 3), np.uint8), ((1, 9), (0, 5))),
    "a hole whose right end is the edge's above": np.array(
        [[1, 1, 0], [1, 0, 1], [1, 1, 1]], np.uint8
    ),
    "a row wider than 16 bits": np.repeat(np.array([[1, 0, 1, 0, 1]], np.uint8), 20_000, axis=1),
    "nested rings": RINGS,
    "a spiral": SPIRAL,
    "a spiral's gap": 1 - SPIRAL,
    "holes above one another": np.tile(
        np.pad(np.zeros((2, 3), np.uint8), 1, constant_values=1), (12, 5)
    ),
    "a diagonal": np.eye(40, dtype=np.uint8),
    "the other diagonal": np.eye(40, dtype=np.uint8)[::-1].copy(),
    "a hole along a diagonal": 1 - np.pad(np.eye(12, dtype=np.uint8), 4),
    "a chessboard": (np.indices((15, 18)).sum(axis=0) % 2).astype(np.uint8),
    "a grid of lines": ((np.indices((21, 25)) % 4 == 0).any(axis=0)).astype(np.uint8),
    "a diamond of pixels": (np.abs(np.indices((15, 15)) - 7).sum(axis=0) == 6).astype(np.uint8),
}


def redrawn(polygons: list[list[int]], size_hw: tuple[int, int]) -> np.ndarray:
    if not polygons:
        return np.zeros(size_hw, np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size_hw)))


def assert_redrawn_exactly(label_map: np.ndarray) -> None:
    class_ids = np.unique(label_map).tolist()
    for class_id, polygons in encode_polygons(label_map, class_ids).items():
        assert np.array_equal(redrawn(polygons, label_map.shape), label_map == class_id)


@given(label_maps | blocks | dense_maps)
def test_encode_polygons_of_any_map_drawn_by_pycocotools_are_the_mask(label_map):
    assert_redrawn_exactly(label_map)


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES.keys())
def test_encode_polygons_of_a_shape_drawn_by_pycocotools_are_the_mask(mask):
    assert_redrawn_exactly(mask)


def drawn_by_pillow(polygons: list[list[int]], size_hw: tuple[int, int]) -> np.ndarray:
    picture = Image.new("L", size_hw[::-1])
    for polygon in polygons:
        ImageDraw.Draw(picture).polygon(polygon, fill=1)
    return np.array(picture)


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES.keys())
def test_encode_polygons_drawn_with_their_outline_differ_only_at_the_outline(mask):
    """Pillow paints the pixels that an outline runs through as well, so the mask grows by one
    pixel.
    """
    differing = drawn_by_pillow(encode_polygons(mask, [1])[1], mask.shape) != mask
    neighbourhoods = sliding_window_view(np.pad(mask, 1), (3, 3))
    inside_or_outside = neighbourhoods.min(axis=(2, 3)) == neighbourhoods.max(axis=(2, 3))
    assert not (differing & inside_or_outside).any()


def test_encode_polygons_of_a_full_frame_is_its_rectangle():
    assert encode_polygons(np.full((3, 5), 7, np.uint8), [7]) == {7: [[0, 0, 0, 3, 5, 3, 5, 0]]}


def test_encode_polygons_hole_is_joined_by_a_bridge_within_the_mask():
    mask = np.ones((4, 5), np.uint8)
    mask[2, 2] = 0
    [polygon] = encode_polygons(mask, [1])[1]
    assert polygon == [0, 0, 0, 4, 5, 4, 5, 0, 3, 0, 3, 3, 2, 3, 2, 2, 3, 2, 3, 0]


@given(label_maps)
def test_encode_polygons_have_corners_alone(label_map):
    for polygons in encode_polygons(label_map, [0, 1, 2]).values():
        for polygon in polygons:
            points = np.array(polygon).reshape(-1, 2)
            steps = np.roll(points, -1, axis=0) - points
            assert (np.count_nonzero(steps, axis=1) == 1).all()
            along = np.sign(steps)
            assert (along != np.roll(along, 1, axis=0)).any(axis=1).all()


def test_encode_polygons_class_that_is_not_there_has_none():
    assert encode_polygons(np.zeros((4, 6), np.uint8), [7]) == {7: []}


def test_encode_polygons_parts_that_lie_apart_are_polygons_of_their_own():
    label_map = np.zeros((5, 9), np.uint8)
    label_map[1:3, 1:3] = label_map[2:4, 5:8] = 1
    assert len(encode_polygons(label_map, [1])[1]) == 2


@pytest.mark.parametrize(
    "mask", [SHAPES["a diagonal"], SHAPES["the other diagonal"], SHAPES["a diamond of pixels"]]
)
def test_encode_polygons_parts_that_touch_at_a_corner_are_one_polygon(mask):
    assert len(encode_polygons(mask, [1])[1]) == 1


@given(label_maps | dense_maps)
def test_encode_polygons_begin_at_their_highest_and_leftmost_corner_from_the_top_down(label_map):
    firsts = []
    for polygon in encode_polygons(label_map, [1])[1]:
        corners = [(y, x) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
        assert corners[0] == min(corners)
        firsts.append(corners[0])
    assert firsts == sorted(firsts)


def test_encode_polygons_of_all_256_classes_are_the_masks():
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    polygons = encode_polygons(label_map, range(256))
    assert polygons[0] == [[0, 0, 0, 1, 1, 1, 1, 0]]
    assert polygons[255] == [[31, 7, 31, 8, 32, 8, 32, 7]]
    assert_redrawn_exactly(label_map)


def test_encode_polygons_of_a_map_that_is_not_contiguous_are_the_mask():
    assert_redrawn_exactly((np.arange(240, dtype=np.uint8).reshape(12, 20) % 7 % 3)[::-1, ::2])
