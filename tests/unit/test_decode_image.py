"""Decoding: geometry, pixel types, limits, and files that are broken on purpose."""

import re
import resource
import struct
import time
import zipfile
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from segserve.runtime.decode.image import decode_image, decode_reduced
from segserve.runtime.decode.opening import FORMATS
from segserve.runtime.errors import (
    CorruptImageError,
    SegserveError,
    TooLargeError,
    TruncatedImageError,
    UnsupportedImageError,
)
from segserve.runtime.settings import PixelLimits

from .images import bmp_header, encoded, gif_of_size, grey_tiff, noise, png, smooth

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL"
)  # of broken metadata, which is made on purpose

MAX_PIXELS = 2**24
LIMITS = PixelLimits(MAX_PIXELS, MAX_PIXELS)
LOSSY_LEVELS = 12  # of 255: what JPEG at quality 95 and WebP may change in smooth gradients


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    return decode_image(content, max_pixels=max_pixels)


def decoded_or_rejected(content: bytes, **limits: int) -> np.ndarray | SegserveError:
    try:
        return decode(content, **limits)
    except SegserveError as error:
        return error


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("image.png", encoded(noise(4, 4)))
    return buffer.getvalue()


def sequence(file_format: str) -> bytes:
    """An animation whose first frame is red and whose second is blue."""
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100)


# Whole files whose truncations and corruptions are tried.
WHOLE = {
    "jpeg": encoded(noise(23, 31), "JPEG"),
    "jpeg progressive": encoded(noise(23, 31), "JPEG", progressive=True),
    "png": encoded(noise(23, 31), "PNG"),
    "png palette": encoded(Image.fromarray(noise(23, 31)).quantize(16), "PNG"),
    "webp": encoded(noise(23, 31), "WEBP"),
    "webp lossless": encoded(noise(23, 31), "WEBP", lossless=True),
    "bmp": encoded(noise(23, 31), "BMP"),
    "tiff": encoded(noise(23, 31), "TIFF"),
    "tiff lzw": encoded(noise(23, 31), "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(noise(23, 31), "TIFF", compression="tiff_adobe_deflate"),
    "gif": encoded(noise(23, 31), "GIF"),
    "gif animated": sequence("GIF"),
}
SIGNATURE_BYTES = 12  # the longest, of WebP
whole_files = st.sampled_from(sorted(WHOLE))


# Geometry


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(FORMATS))
def test_decode_image_any_size_gives_that_size_in_rgb(height_px, width_px, file_format):
    pixels = decode(encoded(smooth(height_px, width_px), file_format))
    assert pixels.shape == (height_px, width_px, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.owndata
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("size_hw", [(1, 1), (3, 2000), (2000, 3), (1, 2000), (2000, 1)], ids=str)
def test_decode_image_extreme_aspect_keeps_size_and_content(file_format, size_hw):
    expected = np.full((*size_hw, 3), (200, 80, 20), np.uint8)
    pixels = decode(encoded(expected, file_format))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= LOSSY_LEVELS


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_decode_image_lossless_format_returns_every_pixel(file_format):
    assert np.array_equal(decode(encoded(noise(37, 53), file_format)), noise(37, 53))


# What a camera stores for an upright picture, by orientation, out of the EXIF specification (the
# place of the stored row 0 and column 0 in the upright picture), written without Pillow's table.
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright.transpose(1, 0, 2)[
        ::-1
    ],  # right, top: row 0 is the right column, from its top
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.transpose(1, 0, 2)[
        :, ::-1
    ],  # left, bottom: row 0 is the left column, from its bottom
}


def with_orientation(upright: np.ndarray, orientation: int, file_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(
        file_format, {}
    )
    stored = np.ascontiguousarray(STORED[orientation](upright))
    return encoded(stored, file_format, exif=exif, **options)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", sorted(STORED))
def test_decode_image_exif_orientation_gives_upright_pixels(orientation, file_format):
    upright = smooth(24, 40)
    pixels = decode(with_orientation(upright, orientation, file_format))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= (
        LOSSY_LEVELS if file_format == "JPEG" else 0
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_decode_image_undefined_orientation_leaves_pixels(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(noise(6, 9), exif=exif)), noise(6, 9))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0junk",
        b"Exif\0\0MM\0*\0\0\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    ],
    ids=repr,
)
def test_decode_image_broken_exif_is_ignored(exif, file_format):
    assert decode(encoded(smooth(6, 9), file_format, exif=exif)).shape == (6, 9, 3)


@given(st.data())
def test_decode_image_exif_with_one_bad_tag_does_not_reject_the_image(data):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    content = bytearray(exif.tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(6, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert decode(encoded(noise(5, 7), exif=bytes(content))).shape in ((5, 7, 3), (7, 5, 3))


def test_decode_image_exif_that_pillow_cannot_write_again_still_turns():
    # Tag 0x010F of type RATIONAL where text is expected: ImageOps.exif_transpose fails when it
    # writes the tags again.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x010F, 5, 1, 38)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + struct.pack(">III", 0, 1, 1)
    assert decode(encoded(noise(5, 7), exif=exif)).shape == (7, 5, 3)


# Pixel types


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("L", "PNG"), ("LA", "PNG"), ("L", "BMP"), ("L", "TIFF"), ("LA", "TIFF"), ("L", "GIF")],
    ids=lambda value: value,
)
def test_decode_image_grey_gives_three_equal_channels(mode, file_format):
    grey = noise(9, 11)[..., 0]
    pixels = decode(encoded(Image.fromarray(grey).convert(mode), file_format))
    assert np.array_equal(pixels, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_decode_image_transparent_pixels_are_on_white_or_in_their_stored_colours(file_format):
    opacity = np.arange(1, 100, dtype=np.uint8).reshape(9, 11)
    opacity[0], opacity[1] = 0, 255
    rgba = np.dstack([noise(9, 11), opacity])
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    content = encoded(rgba, file_format, **options)
    stored = decode_image(content, max_pixels=MAX_PIXELS, alpha="ignore")
    assert np.array_equal(stored, noise(9, 11))
    seen = decode(content)
    assert (seen[0] == 255).all()
    assert np.array_equal(seen[1], stored[1])
    share = opacity[..., None] / 255
    assert np.abs(seen - (share * stored + (1 - share) * 255)).max() <= 1


@pytest.mark.parametrize(
    "transparency", [None, 2, bytes([0, 128, 255, 7])], ids=["opaque", "one index", "table"]
)
def test_decode_image_palette_gives_its_colours(transparency):
    colors = noise(1, 4, seed=5)[0]
    ids = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(colors.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    content = encoded(image, "PNG", **options)
    stored = decode_image(content, max_pixels=MAX_PIXELS, alpha="ignore")
    assert np.array_equal(stored, colors[ids])
    if transparency == 2:
        colors[2] = 255
        assert np.array_equal(decode(content), colors[ids])


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_decode_image_cmyk_becomes_rgb(file_format):
    expected = np.full((16, 16, 3), (200, 80, 20), np.uint8)
    pixels = decode(encoded(Image.fromarray(expected).convert("CMYK"), file_format))
    assert np.abs(pixels.astype(int) - expected).max() <= LOSSY_LEVELS


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP", "GIF"])
def test_decode_image_one_bit_becomes_black_and_white(file_format):
    bits = noise(9, 11)[..., 0] > 127
    pixels = decode(encoded(Image.fromarray(bits), file_format))
    assert np.array_equal(pixels, np.stack([bits * 255] * 3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_decode_image_grey_of_16_bits_keeps_upper_8(file_format, byte_order):
    grey = np.random.default_rng(0).integers(0, 2**16, (9, 11)).astype(byte_order)
    pixels = decode(encoded(Image.fromarray(grey), file_format))
    assert np.array_equal(pixels, np.stack([grey >> 8] * 3, axis=-1))


def test_decode_image_grey_of_16_bits_has_transparent_pixels_on_white():
    grey = np.array([[5, 40_000], [6, 5]], np.uint16)
    content = encoded(Image.fromarray(grey), "PNG", transparency=5)
    assert decode(content)[..., 0].tolist() == [[255, 40_000 >> 8], [0, 255]]
    stored = decode_image(content, max_pixels=MAX_PIXELS, alpha="ignore")
    assert np.array_equal(stored[..., 0], grey >> 8)


def test_decode_image_grey_of_16_bits_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = (np.arange(250, 256, dtype=np.uint16) << 8).reshape(2, 3)
    assert decode(encoded(grey, exif=exif))[..., 0].tolist() == [[253, 250], [254, 251], [255, 252]]


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_decode_image_grey_that_uses_fewer_bits_is_scaled_by_them(file_format, bits):
    grey = noise(9, 11)[..., 0].astype(np.uint16)
    grey[0, 0] = 255
    pixels = decode(encoded(grey << (bits - 8), file_format))
    assert np.array_equal(pixels[..., 0], grey)


@pytest.mark.parametrize(
    ("color", "values", "expected"),
    [
        (2, (0x1234, 0xABCD, 0xFFFF), (0x12, 0xAB, 0xFF)),
        (6, (0x1234, 0xABCD, 0xFFFF, 0xFFFF), (0x12, 0xAB, 0xFF)),
        (4, (0xABCD, 0xFFFF), (0xAB, 0xAB, 0xAB)),
    ],
    ids=["rgb", "rgba", "grey and alpha"],
)
def test_decode_image_png_of_16_bits_keeps_upper_8(color, values, expected):
    scanlines = b"\0" + struct.pack(f">{len(values)}H", *values)
    assert decode(png(1, 1, bits=16, color=color, scanlines=scanlines)).tolist() == [
        [list(expected)]
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (grey_tiff(b"\xab\xcd\xef", width_px=2, height_px=1, bits=12), [0xAB, 0xDE]),
        (grey_tiff(b"\x34\x12\xcd\xab", width_px=2, height_px=1, bits=16), [0x12, 0xAB]),
        (
            grey_tiff(b"\x34\x12\xcd\xab", width_px=2, height_px=1, bits=16, white_is_zero=True),
            [0xED, 0x54],
        ),
        (grey_tiff(b"\x12\xab", width_px=2, height_px=1, bits=8, white_is_zero=True), [0xED, 0x54]),
    ],
    ids=["12 bits", "16 bits", "16 bits, white is zero", "8 bits, white is zero"],
)
def test_decode_image_grey_tiff_keeps_range_and_polarity(content, expected):
    assert decode(content)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_decode_image_animation_gives_first_frame(file_format):
    content = sequence(file_format)
    assert len(list(ImageSequence.Iterator(Image.open(BytesIO(content))))) == 2
    pixels = decode(content)
    assert pixels.shape == (10, 20, 3)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= LOSSY_LEVELS


def test_decode_image_mpo_gives_first_picture():
    content = encoded(
        Image.new("RGB", (20, 10), "red"),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (8, 8))],
    )
    assert Image.open(BytesIO(content)).format == "MPO"
    assert np.abs(decode(content).astype(int) - (255, 0, 0)).max() <= LOSSY_LEVELS


@pytest.mark.parametrize("dtype", [np.float32, np.int32], ids=["float", "int"])
def test_decode_image_tiff_of_32_bits_raises_unsupported(dtype):
    with pytest.raises(UnsupportedImageError, match=r"32 bits.*send unsigned 8 or 16 bits"):
        decode(encoded(np.zeros((3, 4), dtype), "TIFF"))


# Not an image


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello, this is no image",
        b"BMW builds cars, and this text begins like a bitmap, but is none",
        b"<!doctype html><html><body>404</body></html>",
        b"%PDF-1.7\n1 0 obj\n<<>>\nendobj",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        b"\x7fELF" + bytes(60),
        encoded(noise(8, 8), "PPM"),
        encoded(noise(8, 8), "ICO"),
        encoded(noise(8, 8), "TGA"),
        zipped(),
    ],
    ids=[
        "empty",
        "nul",
        "text",
        "text BM",
        "html",
        "pdf",
        "svg",
        "wave",
        "elf",
        "ppm",
        "ico",
        "tga",
        "zip",
    ],
)
def test_decode_image_other_file_raises_unsupported(content):
    with pytest.raises(
        UnsupportedImageError,
        match=r"(not an image|.+ is not read).*; send .*JPEG, PNG, WEBP, AVIF",
    ):
        decode(content)


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_decode_image_random_bytes_raise_segserve_error(content):
    with pytest.raises(SegserveError, match=r"."):
        decode(content)


# Broken files


@pytest.mark.parametrize("name", sorted(WHOLE))
@settings(max_examples=60)
@given(data=st.data())
def test_decode_image_truncated_file_raises_or_holds_every_pixel(name, data):
    whole = WHOLE[name]
    content = whole[: data.draw(st.integers(0, len(whole) - 1))]
    outcome = decoded_or_rejected(content)
    if isinstance(outcome, SegserveError):
        assert outcome.status in ((422,) if len(content) >= SIGNATURE_BYTES else (415, 422))
    else:  # only a trailer, or a frame behind the first, is missing
        assert np.array_equal(outcome, decode(whole))


@pytest.mark.parametrize("name", ["jpeg", "png", "bmp", "tiff", "gif"])
def test_decode_image_half_file_raises_truncated(name):
    with pytest.raises(TruncatedImageError, match=r"ends too early.*send the file whole"):
        decode(WHOLE[name][: len(WHOLE[name]) // 2])


@given(whole_files, st.data())
@settings(max_examples=300)
def test_decode_image_corrupt_file_raises_segserve_error_or_gives_an_image(name, data):
    content = bytearray(WHOLE[name])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    outcome = decoded_or_rejected(bytes(content), max_pixels=2**16)
    if isinstance(outcome, SegserveError):
        assert outcome.status in (413, 415, 422)
        assert "object at 0x" not in str(outcome)
    else:
        assert outcome.ndim == 3
        assert outcome.shape[0] * outcome.shape[1] <= 2**16


@pytest.mark.parametrize(
    "content",
    [
        png(0, 5),
        png(5, 0),
        bmp_header(0, 5),
        bmp_header(5, 0),
        gif_of_size(0, 5),
        gif_of_size(5, 0),
    ],
    ids=["png width", "png height", "bmp width", "bmp height", "gif width", "gif height"],
)
def test_decode_image_zero_sized_raises_corrupt(content):
    with pytest.raises(CorruptImageError, match=r"\w+"):
        decode(content)


# Limits


def test_decode_image_huge_declared_size_is_rejected_before_decoding():
    content = png(100_000, 100_000, scanlines=bytes(500_000))
    assert len(content) < 2_000
    before_kb, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(TooLargeError, match="too many pixels, the limit is 16777216"):
        decode(content)
    assert time.process_time() - began_s < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 20_000


def test_decode_image_above_the_limit_is_rejected_before_decoding():
    with pytest.raises(
        TooLargeError, match=re.escape("4097 x 4096 pixels, the limit is 16777216; scale it down")
    ):
        decode(png(4097, 4096))  # holds no pixel: decoding it would be another error


def test_decode_image_exactly_at_the_limit_is_decoded():
    content = encoded(noise(12, 34))
    assert decode(content, max_pixels=12 * 34).shape == (12, 34, 3)
    with pytest.raises(TooLargeError, match="34 x 12 pixels, the limit is 407"):
        decode(content, max_pixels=12 * 34 - 1)


# Reduced


def reduced(content: bytes, height_px: int, width_px: int):
    return decode_reduced(
        content, limits=LIMITS, needed=lambda _height, _width: (height_px, width_px)
    )


@pytest.mark.parametrize(
    ("needed_hw", "got_hw"),
    [
        ((320, 480), (320, 480)),
        ((161, 240), (320, 480)),
        ((160, 240), (160, 240)),
        ((50, 100), (80, 120)),
        ((1, 1), (40, 60)),
    ],
    ids=["whole", "one row more than half", "half", "between", "eighth"],
)
def test_decode_reduced_jpeg_is_the_smallest_that_is_large_enough(needed_hw, got_hw):
    decoded = reduced(encoded(smooth(320, 480), "JPEG", quality=95), *needed_hw)
    assert decoded.rgb.shape == (*got_hw, 3)
    assert decoded.size_hw == (320, 480)


@pytest.mark.parametrize("orientation", range(1, 9), ids=str)
def test_decode_reduced_jpeg_is_upright_and_looks_like_the_whole(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(320, 480), "JPEG", quality=95, exif=exif)
    whole = decode(content)
    requested = []
    decoded = decode_reduced(
        content,
        limits=LIMITS,
        needed=lambda *size_hw: requested.append(size_hw) or (size_hw[0] // 4, size_hw[1] // 4),
    )
    assert requested == [whole.shape[:2]]
    assert decoded.size_hw == whole.shape[:2]
    height_px, width_px = (side // 4 for side in whole.shape[:2])
    expected = Image.fromarray(whole).resize((width_px, height_px), Image.Resampling.BOX)
    assert np.abs(decoded.rgb.astype(int) - np.asarray(expected)).max() <= LOSSY_LEVELS


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_decode_reduced_other_formats_are_decoded_whole(file_format):
    content = encoded(smooth(64, 96), file_format)
    decoded = reduced(content, 1, 1)
    assert decoded.size_hw == (64, 96)
    assert np.array_equal(decoded.rgb, decode(content))


def test_decode_reduced_grey_and_cmyk_jpegs_become_rgb():
    for mode in ("L", "CMYK"):
        decoded = reduced(encoded(Image.fromarray(smooth(64, 96)).convert(mode), "JPEG"), 8, 12)
        assert decoded.rgb.shape == (8, 12, 3)


def test_decode_reduced_jpeg_cut_short_is_truncated():
    content = encoded(noise(64, 96), "JPEG")
    with pytest.raises(TruncatedImageError, match="ends too early"):
        reduced(content[: len(content) // 2], 8, 12)
