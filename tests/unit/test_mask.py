"""The encodings of a label map hold the same mask, bit for bit."""

import io
import json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from segserve.runtime.encode.mask import dense_json_bytes, encode_jpeg, encode_npy, encode_png
from segserve.runtime.record import read_record

from ..conftest import EMBEDDED

PALETTE = read_record(EMBEDDED).palette
CLASSES = len(PALETTE) // 3

label_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 254)
)


@given(label_maps)
def test_encodings_of_any_map_hold_the_same_mask(label_map):
    from_png = np.array(Image.open(io.BytesIO(encode_png(label_map, bytes(range(255)) * 3))))
    from_npy = np.load(io.BytesIO(encode_npy(label_map)), allow_pickle=False)
    from_json = np.array(json.loads(orjson.dumps(label_map, option=orjson.OPT_SERIALIZE_NUMPY)))
    assert from_png.dtype == from_npy.dtype == np.uint8
    assert np.array_equal(from_png, label_map)
    assert np.array_equal(from_npy, label_map)
    assert np.array_equal(from_json, label_map)


@pytest.mark.parametrize(
    "size_hw", [(1, 1), (1, 2000), (2000, 3), (70_000, 1), (1, 70_000)], ids=str
)
def test_encode_png_extreme_size_keeps_every_id(size_hw):
    label_map = np.random.default_rng(0).integers(0, CLASSES, size_hw, dtype=np.uint8)
    assert np.array_equal(
        np.array(Image.open(io.BytesIO(encode_png(label_map, PALETTE)))), label_map
    )


def test_encode_png_is_indexed_with_the_palette_of_the_record():
    image = Image.open(io.BytesIO(encode_png(np.array([[0, 8, 20]], np.uint8), PALETTE)))
    assert image.mode == "P"
    assert bytes(image.getpalette()[: len(PALETTE)]) == PALETTE
    assert np.array(image.convert("RGB")).tolist() == [[[0, 0, 0], [64, 0, 0], [0, 64, 128]]]


def test_encode_npy_is_read_without_pickle_as_uint8():
    read = np.load(io.BytesIO(encode_npy(np.eye(3, dtype=np.uint8))), allow_pickle=False)
    assert read.dtype == np.uint8
    assert read.tolist() == np.eye(3).tolist()


def test_encode_jpeg_gives_a_picture_of_that_size():
    picture = Image.open(io.BytesIO(encode_jpeg(Image.new("RGB", (30, 20), (200, 80, 20)))))
    assert (picture.format, picture.size) == ("JPEG", (30, 20))


@given(label_maps)
def test_dense_json_bytes_equals_the_true_length(label_map):
    ids, counts = np.unique(label_map, return_counts=True)
    pixels_by_class = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    true_length = len(orjson.dumps(label_map, option=orjson.OPT_SERIALIZE_NUMPY))
    assert dense_json_bytes(pixels_by_class, label_map.shape[0]) == true_length
