"""Run lengths of a label map, against pycocotools' own encoder and decoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from segserve.runtime.encode.mask import encode_rle
from segserve.training.data.masks import area_px, read_runs

label_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 3)
)


@given(label_maps)
def test_encode_rle_any_map_is_what_pycocotools_encodes_and_decodes(label_map):
    masks = encode_rle(label_map, range(4))
    for class_id, rle in masks.items():
        mask = label_map == class_id
        assert (
            rle["counts"].encode() == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
        )
        assert rle["size"] == list(label_map.shape)
        assert np.array_equal(coco_mask.decode(rle), mask)


@pytest.mark.parametrize(
    "label_map",
    [
        np.zeros((1, 1), np.uint8),
        np.full((7, 9), 2, np.uint8),
        np.pad(np.array([[2]], np.uint8), 9),
        np.tile(np.array([0, 2], np.uint8), (1, 40_000)),
        np.tile(np.array([[0], [2]], np.uint8), (40_000, 1)),
        np.repeat(np.array([[0, 2]], np.uint8), [5, 3_000_000], axis=1),
    ],
    ids=[
        "one pixel",
        "one class everywhere",
        "one pixel of a class",
        "stripes wide",
        "stripes tall",
        "long run",
    ],
)
def test_encode_rle_extreme_map_decodes_to_the_same(label_map):
    for class_id, rle in encode_rle(label_map, [0, 2]).items():
        assert np.array_equal(coco_mask.decode(rle), label_map == class_id)


def test_encode_rle_class_that_is_not_there_is_an_empty_mask():
    rle = encode_rle(np.zeros((4, 6), np.uint8), [7])[7]
    assert area_px(read_runs(rle["counts"], height_px=4, width_px=6)) == 0


def test_encode_rle_map_that_is_not_contiguous_is_read_as_it_looks():
    label_map = np.arange(24, dtype=np.uint8).reshape(4, 6)[::-1, ::2] % 3
    assert np.array_equal(coco_mask.decode(encode_rle(label_map, [1])[1]), label_map == 1)
