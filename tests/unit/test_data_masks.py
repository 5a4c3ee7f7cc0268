"""Run-length encoded masks, against pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from segserve.training.data.masks import area_px, read_runs, unrolled

from .coco import rle

MASKS = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.integers(0, 1)
)
BLOCKS = MASKS.map(lambda mask: np.kron(mask, np.ones((9, 11), np.uint8)))


@given(MASKS | BLOCKS, st.booleans())
def test_read_runs_give_the_mask_that_was_encoded(mask, compressed):
    height_px, width_px = mask.shape
    runs = read_runs(
        rle(mask, compressed=compressed)["counts"], height_px=height_px, width_px=width_px
    )
    assert np.array_equal(unrolled(runs).reshape(width_px, height_px).T, mask)
    assert area_px(runs) == mask.sum()


def test_read_runs_of_a_large_mask_keep_long_runs():
    mask = np.zeros((3000, 2000), np.uint8)
    mask[2999, 1999] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    assert read_runs(counts, height_px=3000, width_px=2000).tolist() == [3000 * 2000 - 1, 1]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "cannot be read"),
        ("o", "cannot be read"),
        ("o" * 40 + "0", "cannot be read"),
        ("é0", "cannot be read"),
        (" 1", "cannot be read"),
        ("0", "do not add up to 10 x 10 pixels"),
        ("00000", "do not add up"),
        ([50, 49], "do not add up"),
        ([101, -1], "do not add up"),
        ([], "do not add up"),
        ([10**30], "too large"),
        ([50.0, 50.0], "neither a list of whole numbers nor a text"),
        (None, "neither a list of whole numbers nor a text"),
    ],
    ids=str,
)
def test_read_runs_of_another_image_raise(counts, message):
    with pytest.raises(ValueError, match=message):
        read_runs(counts, height_px=10, width_px=10)


@given(st.binary(max_size=30) | st.lists(st.integers(-(2**70), 2**70), max_size=5))
def test_read_runs_of_any_input_give_runs_of_the_image_or_raise(counts):
    try:
        runs = read_runs(counts, height_px=4, width_px=5)
    except ValueError:
        return
    assert unrolled(runs).size == 20
