"""Formats and photographs as people have them: AVIF, HEIC, large JPEGs, files without an end."""

import struct
import sys
import time
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from segserve.runtime.decode.avif import frame_pixels
from segserve.runtime.decode.image import decode_image, decode_reduced, decoded_size
from segserve.runtime.errors import (
    CorruptImageError,
    SegserveError,
    TooLargeError,
    TruncatedImageError,
    UnsupportedImageError,
)
from segserve.runtime.settings import MAX_IMAGE_PIXELS, PixelLimits

from .images import encoded, noise, smooth

MAX_PIXELS = 2**24


def decode(content: bytes) -> np.ndarray:
    return decode_image(content, max_pixels=MAX_PIXELS)


# AVIF


def avif(height_px: int, width_px: int, **options) -> bytes:
    return encoded(smooth(height_px, width_px), "AVIF", quality=95, **options)


@pytest.mark.parametrize("size_hw", [(1, 1), (64, 96), (301, 43)], ids=str)
def test_decode_image_avif_gives_the_image(size_hw):
    pixels = decode(avif(*size_hw))
    assert np.abs(pixels.astype(int) - smooth(*size_hw)).max() <= 12
    assert frame_pixels(avif(*size_hw)) == size_hw[0] * size_hw[1]


def test_decode_image_avif_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(avif(64, 96, exif=exif)).shape == (96, 64, 3)


def test_frame_pixels_counts_the_alpha_channel_as_an_image():
    rgba = np.dstack([smooth(32, 48), np.full((32, 48), 128, np.uint8)])
    assert frame_pixels(encoded(rgba, "AVIF")) == 2 * 32 * 48


def test_decode_image_avif_whose_frames_are_larger_than_declared_is_too_large():
    """The container says 8 x 8, the frame inside has 1,024 x 1,024 pixels."""
    content = avif(1024, 1024)
    size = struct.pack(">4s", b"ispe") + bytes(4)
    place = content.index(size) + len(size)
    small = content[:place] + struct.pack(">II", 8, 8) + content[place + 8 :]
    assert Image.open(BytesIO(small)).size == (8, 8)
    with pytest.raises(TooLargeError, match="frames of the AVIF file have 1048576 pixels"):
        decode_image(small, max_pixels=10_000)


def test_decode_image_animated_avif_says_so():
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    content = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageError, match="animated AVIF"):
        decode(content)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.9])
def test_decode_image_avif_cut_short_is_rejected(share):
    content = avif(64, 96)
    with pytest.raises(CorruptImageError):
        decode(content[: int(share * len(content))])


def test_decode_image_damaged_avif_gives_an_image_or_a_documented_error():
    content, random = avif(64, 96), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 8)):
            damaged[random.integers(12, len(content))] = random.integers(256)
        try:
            decode(bytes(damaged))
        except SegserveError as error:
            assert error.status in (413, 415, 422)  # noqa: PT017 - some files are still images


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


HEAD = box(b"ftyp", b"avif" + bytes(4) + b"avif")
NO_ITEMS = box(b"iinf", bytes(6))
# Items whose 65,535 extents of no bytes begin beyond the end of the file.
ITEMS = b"".join(struct.pack(">HHIH", item, 0, 2**31, 65535) for item in range(1000))
EXTENTS = box(b"iloc", struct.pack(">IBBH", 0, 0, 0x40, 1000) + ITEMS)


@pytest.mark.parametrize(
    "content",
    [
        HEAD + box(b"meta", bytes(4) + NO_ITEMS + EXTENTS),
        HEAD + box(b"free", b"") * 20_000,
    ],
    ids=["extents", "boxes"],
)
def test_frame_pixels_of_absurdly_many_parts_ends_in_little_time(content):
    began_s = time.process_time()
    with pytest.raises(CorruptImageError, match="boxes make no sense"):
        frame_pixels(content)
    assert time.process_time() - began_s < 1


# Other formats


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypavis", "animated AVIF"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"II+\0", "BigTIFF"),
        (b"\0\0\0\x18ftypcrx ", "a camera's raw file"),
        (bytes(128) + b"DICM", "DICOM"),
        (b'<?xml version="1.0"?>\n<svg ', "SVG"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decode_image_of_another_format_names_it(start, name):
    with pytest.raises(
        UnsupportedImageError, match=rf"{name}.* is not read.*JPEG, PNG, WEBP, AVIF"
    ):
        decode(start + bytes(100))


def test_decode_image_of_no_image_says_so():
    with pytest.raises(UnsupportedImageError, match="not an image"):
        decode(b"hello")


@pytest.mark.skipif(find_spec("pillow_heif") is None, reason="the extra `heic` is not installed")
def test_decode_image_heic_is_read_with_its_extra():
    from pillow_heif import from_pillow

    path_like = BytesIO()
    from_pillow(Image.fromarray(smooth(64, 96))).save(path_like, quality=95)
    pixels = decode(path_like.getvalue())
    assert np.abs(pixels.astype(int) - smooth(64, 96)).mean() < 4


def test_decode_image_heic_without_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedImageError, match="HEIC is not read"):
        decode(b"\0\0\0\x18ftypheic" + bytes(100))


def test_decode_image_tiff_of_separate_planes_of_16_bits_is_not_read():
    """Pillow reads it as noise, without an error."""
    planes = smooth(8, 9).transpose(2, 0, 1).astype("<u2") * 257
    plane_bytes = planes[0].nbytes
    offsets_at = 8 + planes.nbytes
    tables = struct.pack("<3I", *(8 + i * plane_bytes for i in range(3)))
    tables += struct.pack("<3I", *[plane_bytes] * 3) + struct.pack("<4H", 16, 16, 16, 0)
    tags = [
        (0x100, 4, 1, 9),
        (0x101, 4, 1, 8),
        (0x102, 3, 3, offsets_at + 24),
        (0x103, 3, 1, 1),
        (0x106, 3, 1, 2),
        (0x111, 4, 3, offsets_at),
        (0x115, 3, 1, 3),
        (0x116, 4, 1, 8),
        (0x117, 4, 3, offsets_at + 12),
        (0x11C, 3, 1, 2),
    ]
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    start = struct.pack("<I", offsets_at + len(tables))
    content = b"II*\0" + start + planes.tobytes() + tables + directory
    assert Image.open(BytesIO(content)).size == (9, 8)
    with pytest.raises(UnsupportedImageError, match="separate planes of 16 bits"):
        decode(content)


# Large photographs

LIMITS = PixelLimits(declared=480 * 320, decoded=480 * 320 // 4)


def test_decode_reduced_jpeg_above_the_decoded_limit_is_decoded_at_a_fraction():
    content = encoded(smooth(320, 480), "JPEG", quality=95)
    decoded = decode_reduced(content, limits=LIMITS, needed=None)
    assert decoded.rgb.shape == (160, 240, 3)
    assert decoded.size_hw == (320, 480)
    half = Image.fromarray(smooth(320, 480)).resize((240, 160), Image.Resampling.BOX)
    assert np.abs(decoded.rgb.astype(int) - np.asarray(half)).max() <= 12


def test_decode_reduced_jpeg_of_which_more_is_needed_than_the_limit_is_too_large():
    content = encoded(smooth(320, 480), "JPEG")
    with pytest.raises(TooLargeError, match=r"all 480 x 320 pixels.*38400.*mode=whole"):
        decode_reduced(content, limits=LIMITS, needed=lambda height, width: (height, width))


def test_decode_reduced_other_formats_are_limited_by_the_decoded_pixels():
    with pytest.raises(TooLargeError, match=r"the limit is 38400 \(153600 for a JPEG\)"):
        decode_reduced(encoded(smooth(320, 480)), limits=LIMITS, needed=None)


def test_decode_reduced_jpeg_above_the_declared_limit_is_too_large():
    with pytest.raises(TooLargeError, match=r"481 x 320 pixels, the limit is 153600;"):
        decode_reduced(encoded(smooth(320, 481), "JPEG"), limits=LIMITS, needed=None)


def test_decode_image_above_pillow_s_own_limit_names_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooLargeError, match=r"too many pixels, the limit is 12345;"):
        decode_image(encoded(smooth(320, 480), "JPEG"), max_pixels=12345)


def test_max_image_pixels_of_the_settings_is_at_most_the_size_that_pillow_opens():
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == MAX_IMAGE_PIXELS


# JPEGs without their end


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("missing", [b"\xff\xd9", b"\xd9"], ids=["whole marker", "half of it"])
def test_decode_image_jpeg_without_its_end_marker_is_read(mode, subsampling, missing):
    image = Image.fromarray(noise(67, 93)).convert(mode)
    content = encoded(image, "JPEG", subsampling=subsampling)
    without = content.removesuffix(missing)
    assert len(without) < len(content)
    assert np.array_equal(decode(without), decode(content))
    assert decoded_size(without, max_pixels=MAX_PIXELS) == (67, 93)


@pytest.mark.parametrize("cut_bytes", [3, 4, 6, 10, 40, 400])
@pytest.mark.parametrize("seed", range(5))
def test_decode_image_jpeg_that_lacks_data_stays_truncated(cut_bytes, seed):
    content = encoded(noise(64, 96, seed), "JPEG")
    for read in (decode, lambda cut: decoded_size(cut, max_pixels=MAX_PIXELS)):
        with pytest.raises(TruncatedImageError):
            read(content[:-cut_bytes])


def test_decode_image_jpeg_with_a_tail_of_zeros_stays_truncated():
    content = encoded(noise(67, 93), "JPEG")
    with pytest.raises(TruncatedImageError):
        decode(content[:-3000] + bytes(3000))


def test_decode_image_progressive_jpeg_without_its_end_stays_truncated():
    content = encoded(noise(67, 93), "JPEG", progressive=True)
    with pytest.raises(TruncatedImageError):
        decode(content[:-2])
