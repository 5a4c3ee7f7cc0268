"""Files without their metadata: the pixels and the way up stay what they were, and little is left
to read.
"""

import io
import struct
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from segserve.runtime.decode.image import decode_image
from segserve.runtime.decode.strip_metadata import (
    MAX_JPEG_SCANS,
    orientation_of,
    strip_metadata,
)
from segserve.runtime.errors import (
    SegserveError,
    TooLargeError,
    TruncatedImageError,
    UnsupportedImageError,
)
from tests.hostile.bombs import jpeg_of_frame, tiff
from tests.hostile.damage import spliced
from tests.hostile.whole import boundaries, whole_files

from .images import encoded, noise

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MAX_PIXELS = 2**24
GREY_16_BIT = ("png 16 bits", "tiff 16 bits")  # Pillow alone would clip them
REJECTED = ("bmp header alone", "bmp runs", "tiff big")
READABLE = sorted(set(whole_files()) - {*GREY_16_BIT, *REJECTED})


def status_of(work: Callable[[], object]) -> int:
    try:
        work()
    except SegserveError as error:
        return error.status
    return 200


@pytest.mark.parametrize("name", READABLE)
def test_decode_image_of_a_stripped_file_gives_what_pillow_gives_of_the_whole(name):
    content = whole_files()[name]
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = decode_image(content, max_pixels=MAX_PIXELS, alpha="ignore")
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    "name", ["jpeg metadata", "png metadata", "gif comment", "jpeg two pictures", "tiff pages"]
)
def test_strip_metadata_removes_metadata_and_further_pictures(name):
    with Image.open(io.BytesIO(strip_metadata(whole_files()[name]).content)) as image:
        assert not {"exif", "icc_profile", "comment", "mp"} & image.info.keys()
        assert getattr(image, "n_frames", 1) == 1


@given(st.sampled_from(sorted(whole_files())), st.data())
@settings(max_examples=150)
def test_decode_image_of_changed_fields_gives_an_image_or_a_documented_error(name, data):
    content = bytearray(whole_files()[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(boundaries(bytes(content))))
        number = data.draw(
            st.sampled_from((0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1))
            | st.integers(0, 2**32 - 1)
        )
        content[place : place + 4] = struct.pack(data.draw(st.sampled_from("<>")) + "I", number)
    assert status_of(lambda: decode_image(bytes(content), max_pixels=2**20)) in (200, 413, 415, 422)


@given(st.randoms(use_true_random=False), st.integers(0, 1000))
@settings(max_examples=60)
def test_strip_metadata_of_spliced_files_ends_in_little_time(random, number):
    content = spliced(random, number)
    began_s = time.process_time()
    assert status_of(lambda: strip_metadata(content)) in (200, 413, 415, 422)
    assert time.process_time() - began_s < 1


# Orientation


def exif_of(order: str, entries: list[tuple[int, int, int, int]]) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(f"{order}{'H2x' if kind == 3 else 'I'}", value)
        for tag, kind, count, value in entries
    )
    return b"Exif\0\0" + mark + struct.pack(f"{order}IH", 8, len(entries)) + packed


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("kind", [3, 4], ids=["short", "long"])
def test_orientation_of_exif_is_its_tag_s_value(order, kind):
    assert orientation_of(exif_of(order, [(0x010F, 2, 9, 8), (0x0112, kind, 1, 6)])) == 6


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0junk",
        exif_of("<", [(0x0112, 2, 1, 6)]),
        exif_of("<", [(0x0112, 3, 2, 6)]),
        exif_of("<", [(0x0112, 3, 1, 6)])[:-5],
        b"Exif\0\0II*\0" + struct.pack("<I", 2**32 - 1),
    ],
    ids=["none", "empty", "junk", "text", "two values", "cut short", "elsewhere"],
)
def test_orientation_of_what_cannot_be_read_is_upright(exif):
    assert orientation_of(exif) == 1


# Limits


def scans(count: int) -> bytes:
    content = encoded(noise(16, 16), "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    there = content.count(b"\xff\xda")
    return content[:-2] + content[last:-2] * (count - there) + b"\xff\xd9"


def test_decode_image_jpeg_of_too_many_scans_is_rejected():
    assert decode_image(scans(MAX_JPEG_SCANS), max_pixels=256).shape == (16, 16, 3)
    with pytest.raises(TooLargeError, match="more than 100 scans; save it again"):
        decode_image(scans(MAX_JPEG_SCANS + 1), max_pixels=256)


def test_strip_jpeg_above_16_million_pixels_may_have_25_scans():
    strip_metadata(jpeg_of_frame(0xC2, 4096, scans=26))
    strip_metadata(jpeg_of_frame(0xC2, 4097, scans=25))
    with pytest.raises(TooLargeError, match="more than 25 scans; save it again"):
        strip_metadata(jpeg_of_frame(0xC2, 4097, scans=26))


@pytest.mark.parametrize("marker", sorted({*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}), ids=hex)
def test_strip_jpeg_that_is_neither_baseline_nor_progressive_is_unsupported(marker):
    """A lossless one writes outside its memory if it is reduced; arithmetic coding is slow."""
    frame = rf"\(frame type SOF{marker - 0xC0}\) is not read; save it as baseline or progressive"
    with pytest.raises(UnsupportedImageError, match=frame):
        strip_metadata(jpeg_of_frame(marker, 64))
    late = encoded(noise(8, 8), "JPEG")[:-2] + jpeg_of_frame(marker, 64)[2:]
    with pytest.raises(UnsupportedImageError, match=frame):
        strip_metadata(late)


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2], ids=hex)
def test_decode_image_jpeg_of_a_baseline_or_progressive_frame_is_read(marker):
    assert decode_image(jpeg_of_frame(marker, 64), max_pixels=MAX_PIXELS).shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["bmp runs", "tiff big"])
def test_decode_image_of_a_rare_kind_of_file_is_unsupported(name):
    with pytest.raises(UnsupportedImageError, match=r"is not read|format that is read"):
        decode_image(whole_files()[name], max_pixels=MAX_PIXELS)


def test_decode_image_tiff_of_a_tile_above_the_limit_is_rejected():
    tags = {
        0x100: (4, 1, 16),
        0x101: (4, 1, 16),
        0x102: (3, 1, 8),
        0x103: (3, 1, 8),
        0x106: (3, 1, 1),
    }
    tiles = {0x142: (4, 1, 4096), 0x143: (4, 1, 4112), 0x144: (4, 1, 8), 0x145: (4, 1, 8)}
    with pytest.raises(TooLargeError, match="tiles of 4096 x 4112 pixels, the limit is 16777216"):
        decode_image(tiff({**tags, **tiles}), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("compression", [6, 34925, 65535], ids=["old JPEG", "LZMA", "unknown"])
def test_decode_image_tiff_of_a_compression_that_is_not_read_says_so(compression):
    with pytest.raises(
        UnsupportedImageError, match=f"compression {compression} of the TIFF is not read; save it"
    ):
        decode_image(tiff({0x103: (3, 1, compression)}), max_pixels=MAX_PIXELS)


def test_decode_image_tiff_whose_directory_is_missing_is_truncated():
    with pytest.raises(TruncatedImageError, match="ends before its directory"):
        decode_image(b"II*\0" + struct.pack("<I", 1000) + bytes(20), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_strip_tiff_that_begins_with_a_reduced_copy_is_unsupported(order):
    """As the raw files of cameras do: the whole photograph is in another directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tags = [(0xFE, 1), (0x100, 1), (0x101, 1), (0x102, 8), (0x103, 1), (0x106, 1)]
    tags += [(0x111, 8 + 2 + 12 * 9 + 4), (0x116, 1), (0x117, 1)]

    def file_of(tags: list[tuple[int, int]]) -> bytes:
        entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
        head = mark + struct.pack(f"{order}IH", 8, len(tags))
        return head + entries + struct.pack(f"{order}I", 0) + b"\x80"

    with pytest.raises(UnsupportedImageError, match=r"raw files .*export .*JPEG"):
        decode_image(file_of(tags), max_pixels=100)
    whole = decode_image(file_of([(0xFE, 0), *tags[1:]]), max_pixels=100)
    assert whole.tolist() == [[[0x80] * 3]]
