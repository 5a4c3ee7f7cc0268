"""Image and label files: their content, and the errors of unreadable files."""

import numpy as np
import pytest
from PIL import Image

from segserve.training.data.files import MAX_PIXELS, DataError, image_size, read_image
from segserve.training.data.label_images import read_png, read_rgb_png

from .images import bmp_header, encoded, noise, png, smooth

LABELS = np.random.default_rng(0).integers(0, 4, (9, 7)).astype(np.uint8)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9), ids=str)
def test_image_size_is_that_of_the_upright_image(tmp_path, orientation, file_format):
    path = tmp_path / "a"
    path.write_bytes(encoded(smooth(30, 17), file_format, exif=oriented(orientation)))
    assert image_size(path) == read_image(path).shape[:2]
    assert image_size(path) == ((30, 17) if orientation < 5 else (17, 30))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize(
    "pixels", [noise(1, 1), noise(3, 500), noise(61, 47)[..., 0]], ids=["1x1", "wide", "grey"]
)
def test_image_size_of_a_jpeg_decoded_at_an_eighth_is_the_whole_size(tmp_path, pixels, options):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(pixels, "JPEG", **options))
    assert image_size(path) == pixels.shape[:2]


BROKEN = {
    "short JPEG": (encoded(noise(64, 64), "JPEG")[:2000], "ends too early"),
    "short PNG": (encoded(noise(64, 64), "PNG")[:2000], "ends too early|cannot be decoded"),
    "text": (b"these are not the pixels", "not an image of a format that is read; send one of"),
    "empty": (b"", "not an image"),
    "float TIFF": (encoded(Image.new("F", (4, 4)), "TIFF"), "no fixed range"),
    "too large": (bmp_header(2**13 + 1, 2**13), f"the limit is {MAX_PIXELS}"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [read_image, image_size])
def test_broken_image_raises_and_names_the_file(tmp_path, read, content, message):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.jpg: .*({message})"):
        read(path)


def test_missing_file_raises_and_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.jpg: is missing"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        read_png(tmp_path)


def test_read_png_grey_and_palette_give_the_stored_values(tmp_path):
    grey, palette = Image.fromarray(LABELS), Image.fromarray(LABELS)
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    for name, picture, options in (
        ("grey", grey, {}),
        ("p8", palette, {}),
        ("p2", palette, {"bits": 2}),
    ):
        picture.save(tmp_path / f"{name}.png", **options)
        assert np.array_equal(read_png(tmp_path / f"{name}.png"), LABELS), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(np.zeros((4, 4), np.uint8), "JPEG"), "is no PNG file"),
        (b"", "is no PNG file"),
        (encoded(LABELS)[:50], "cannot be decoded"),
        (png(8, 8, color=0), "cannot be decoded"),
        (png(2**14, 2**13, color=0), "the limit is"),
    ],
    ids=[
        "JPEG",
        "empty",
        "short",
        "no pixels",
        "too large",
    ],
)
def test_read_png_of_another_kind_raises_and_names_the_file(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
        read_png(tmp_path / "a.png")


def test_read_rgb_png_of_a_label_map_raises(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(LABELS))
    with pytest.raises(DataError, match=r"a\.png: expected an 8-bit RGB PNG, got L"):
        read_rgb_png(tmp_path / "a.png")
