"""Every image input becomes an image file, from which the server reads the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from segserve.client.request import as_image_file
from segserve.runtime.decode.image import decode_image

from .canned import IMAGE_RGB, as_file

JPEG = as_file(IMAGE_RGB, "JPEG")
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # rotated by 90 degrees


def read_by_server(image) -> np.ndarray:
    return decode_image(as_image_file(image), max_pixels=1000)


@pytest.mark.parametrize(
    "of", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"]
)
def test_as_image_file_returns_bytes_unchanged(of):
    assert as_image_file(of(JPEG)) == JPEG


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["text", "path"])
def test_as_image_file_of_a_path_returns_the_bytes_of_the_file(tmp_path, as_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(JPEG)
    assert as_image_file(as_path(path)) == JPEG


def test_as_image_file_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        as_image_file(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    "pixels",
    [
        IMAGE_RGB,
        IMAGE_RGB[..., 0],
        IMAGE_RGB[::2, ::-1],
        np.asfortranarray(IMAGE_RGB),
        IMAGE_RGB[:1, :1],
    ],
    ids=["rgb", "grey", "strides", "fortran", "one pixel"],
)
def test_as_image_file_of_an_array_preserves_every_pixel(pixels):
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    assert np.array_equal(read_by_server(pixels), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV"])
def test_as_image_file_of_an_image_of_any_mode_preserves_its_rgb(mode):
    picture = Image.fromarray(IMAGE_RGB).convert(mode)
    assert np.array_equal(read_by_server(picture), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_as_image_file_of_a_16_bit_image_preserves_the_upper_byte(mode):
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2500
    stored = values.astype(">u2" if mode == "I;16B" else "<u2")
    picture = Image.frombytes(mode, (6, 4), stored.tobytes())
    assert np.array_equal(read_by_server(picture)[..., 0], values >> 8)


def test_as_image_file_of_an_image_equals_that_of_its_file(tmp_path):
    path = tmp_path / "sideways.png"
    Image.fromarray(IMAGE_RGB).save(path, exif=SIDEWAYS)
    with Image.open(path) as picture:
        assert np.array_equal(read_by_server(picture), read_by_server(path))
        assert read_by_server(picture).shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE_RGB.astype(np.float32), r"got float32 \(4, 6, 3\)"),
        (
            np.zeros((4, 6, 4), np.uint8),
            r"expected uint8 \(H, W, 3\), RGB, or \(H, W\), grey, got uint8 \(4, 6, 4\)",
        ),
        (np.zeros((1, 4, 6, 3), np.uint8), r"got uint8 \(1, 4, 6, 3\)"),
        (np.zeros((0, 6, 3), np.uint8), r"got uint8 \(0, 6, 3\)"),
        (Image.new("F", (6, 4)), "pixels of type F"),
        (Image.new("I", (6, 4)), "pixels of type I"),
    ],
    ids=["float", "four channels", "batch", "no rows", "float image", "32-bit image"],
)
def test_as_image_file_of_an_invalid_image_raises(image, message):
    with pytest.raises(ValueError, match=message):
        as_image_file(image)


@pytest.mark.parametrize(
    "image", [None, 3, io.BytesIO(JPEG), [[1]]], ids=["none", "number", "open file", "list"]
)
def test_as_image_file_other_type_raises(image):
    with pytest.raises(TypeError, match="expected a path, bytes, a PIL image or a NumPy array"):
        as_image_file(image)
