"""Opens an image file of a format that is read, and checks all limits before it is decoded.

The container of an AVIF file declares the size of the image, and each AV1 frame declares a size of
its own. The decoder allocates memory for the frame. So both sizes are limited.

Sources: ISO/IEC 14496-12 (boxes), the AVIF specification 1.1, and the AV1 bitstream specification,
section 5.5 (sequence header).
"""

import io
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import (
    CorruptImageError,
    SegserveError,
    TooLargeError,
    TruncatedImageError,
    UnsupportedImageError,
)
from ..settings import PixelLimits
from .strip_metadata import strip_metadata

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")

# The first bytes of these formats. They distinguish a broken image from a file that is not an
# image.
_SIGNATURE = re.compile(
    rb"\xff\xd8|\x89PNG|RIFF.{4}WEBP|.{4}ftypavif|BM.{4}\0{4}|II\*\0|MM\0\*|GIF8", re.DOTALL
)
_HEIC = re.compile(rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)

# By the name of a format that people send: its first bytes.
_OTHERS = {
    "HEIC": _HEIC.pattern,
    "animated AVIF": rb".{4}ftypavis",
    "a video (MP4, MOV)": rb".{4}ftyp(?!crx)",
    "a camera's raw file": rb".{4}ftypcrx|FUJIFILMCCD-RAW|IIRO|IIU\0|\0MRM",
    "BigTIFF": rb"II\+\0|MM\0\+",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
    "DICOM": rb".{128}DICM",
    "a Git LFS pointer (`git lfs pull` fetches the image)": rb"version https://git-lfs",
    "SVG": rb"\s*(?:<\?xml[^>]*>\s*)?<svg",
    "an HTML page": rb"\s*<(?:!doctype html|html)",
}
_NAMED = {name: re.compile(pattern, re.DOTALL | re.IGNORECASE) for name, pattern in _OTHERS.items()}

# TIFF tags, and the value of the tag for planes that are stored one after the other.
TIFF_BITS, _PLANES, _TILE_WIDTH, _TILE_LENGTH = 0x102, 0x11C, 0x142, 0x143
_SEPARATE = 2

_JPEG_END = b"\xff\xd9"
_NOISES = tuple(bytes.fromhex(code) * 256 for code in ("5aa5c396691e", "b54b872dd23c"))  # no ff

# AV1 frames of one image: its tiles, its alpha channel, thumbnails.
_MAX_AVIF_COPIES = 3
_MAX_AVIF_PARTS = 10_000  # boxes beside each other, extents of all items; usually below 20
_MAX_ILOC_BYTES = 2**16
_FULL_BOX = 4  # bytes of version and flags
_READ_BOXES = (b"meta", b"iinf", b"iloc", b"idat")
_SEQUENCE_HEADER = 1  # type of the open bitstream unit (OBU) that declares the frame size


def opened(content: bytes, limits: PixelLimits) -> Image.Image:
    """Opens the image and checks all limits. Its `info["exif"]` is what the file holds."""
    formats = ("HEIF",) if _reads_heic(content) else FORMATS
    if formats is FORMATS and _SIGNATURE.match(content) is None:
        found = next((name for name, start in _NAMED.items() if start.match(content)), None)
        what = f"{found} is not read" if found else "not an image of a format that is read"
        raise UnsupportedImageError(f"{what}; send one of {', '.join(FORMATS)}")
    file = strip_metadata(content)
    with decoding():
        if content[4:12] == b"ftypavif":
            _check_frames(content, _MAX_AVIF_COPIES * limits.decoded)
        image = _open(file.content, formats, limits)
        _check_size(image, limits)
        _check_tags(image, limits.decoded)
        _check_run_lengths(image)
        if file.lacks_end:
            fraction = jpeg_fraction(image.size, limits.decoded)
            image = _open(_with_end(file.content, fraction), formats, limits)
        if file.exif:
            image.info["exif"] = file.exif
    return image


def _reads_heic(content: bytes) -> bool:
    """Whether the file is HEIC and the package pillow-heif is installed. Registers it then."""
    if not _HEIC.match(content):
        return False
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _open(content: bytes, formats: tuple[str, ...], limits: PixelLimits) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"the image has too many pixels, the limit is {limits.declared}; scale it down before "
            "sending"
        ) from error
    except UnidentifiedImageError as error:
        raise CorruptImageError(
            "the file begins like an image, but its header cannot be read; send it whole, or "
            "saved as 8-bit RGB"
        ) from error


def _check_frames(content: bytes, max_pixels: int) -> None:
    pixels = frame_pixels(content)
    if pixels > max_pixels:
        raise TooLargeError(
            f"the frames of the AVIF file have {pixels} pixels, the limit is {max_pixels}; scale "
            "the image down before sending"
        )


def _with_end(content: bytes, fraction: int) -> bytes:
    """A JPEG with its missing end marker, as some cameras write it.

    libjpeg fills missing pixels with grey and reports no error. So the file is decoded with
    different continuations. If no data is missing, all give the same pixels.
    """
    ended = content + _JPEG_END
    pixels = _jpeg_pixels(ended, fraction)
    if any(_jpeg_pixels(content + noise + _JPEG_END, fraction) != pixels for noise in _NOISES):
        raise TruncatedImageError("the image ends too early; send the file whole")
    return ended


def _jpeg_pixels(content: bytes, fraction: int) -> bytes:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        image.draft(None, (max(1, image.width // fraction), max(1, image.height // fraction)))
        return image.tobytes()


def jpeg_fraction(declared_hw: tuple[int, int], max_decoded: int) -> int:
    """The smallest divisor of both sides with which a JPEG has no more pixels than the limit."""
    pixels = declared_hw[0] * declared_hw[1]
    return next((divisor for divisor in (1, 2, 4) if pixels <= max_decoded * divisor**2), 8)


def _check_size(image: Image.Image, limits: PixelLimits) -> None:
    width_px, height_px = image.size
    if width_px < 1 or height_px < 1:
        raise CorruptImageError(
            f"the image declares a size of {width_px} x {height_px} pixels; nothing to segment"
        )
    limit = limits.declared if image.format == "JPEG" else limits.decoded
    if width_px * height_px > limit:
        larger = f" ({limits.declared} for a JPEG)" if limit < limits.declared else ""
        raise TooLargeError(
            f"the image has {width_px} x {height_px} pixels, the limit is {limit}{larger}; scale "
            "it down before sending"
        )


def _check_tags(image: Image.Image, max_decoded: int) -> None:
    """Checks the tags of a TIFF. Tiles may be larger than the image, and the decoder decodes whole
    tiles. Pillow mixes up separate planes of more than 8 bits.
    """
    tags = tiff_tags(image)
    width_px, height_px = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width_px * height_px > max_decoded:
        raise TooLargeError(
            f"tiles of {width_px} x {height_px} pixels, the limit is {max_decoded} pixels; save it "
            "in smaller ones"
        )
    bits = tags.get(TIFF_BITS, (1,))
    if len(bits) > 1 and max(bits) > 8 and tags.get(_PLANES) == _SEPARATE:
        raise UnsupportedImageError(
            f"a TIFF with separate planes of {max(bits)} bits is not read; save it with 8 bits a "
            "channel, or with interleaved channels"
        )


def _check_run_lengths(image: Image.Image) -> None:
    """Pillow decodes run-length encoded bitmaps in Python, at 0.2 s per megabyte, and may write 255
    rows beyond the image.
    """
    tiles = getattr(image, "tile", ())
    if tiles and tiles[0].codec_name == "bmp_rle":
        raise UnsupportedImageError(
            "a run-length encoded bitmap is not read; save it without that encoding, or as PNG"
        )


def tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


@contextmanager
def decoding() -> Iterator[None]:
    """Converts what Pillow raises on hostile bytes, which may be any exception. The error quotes
    the decoder's own message, but not Python's about a malformed header.
    """
    try:
        yield
    except (SegserveError, MemoryError):
        raise
    except Exception as error:
        reported = isinstance(error, OSError | ValueError | SyntaxError | EOFError)
        reason = (" ".join(str(error).split())[:120] if reported else "") or "malformed header"
        if "truncated" in reason.lower() or isinstance(error, EOFError):
            raise TruncatedImageError(
                f"the image ends too early ({reason}); send the file whole"
            ) from error
        raise CorruptImageError(
            f"the image cannot be decoded ({reason}); save it again and send that"
        ) from error


def frame_pixels(content: bytes) -> int:
    """The sum of width times height over all AV1 images of the file: tiles, alpha, thumbnails."""
    try:
        boxes = _named_boxes(content, 0, len(content))
        if b"moov" in boxes:
            raise UnsupportedImageError("animated AVIF is not read; send one of its frames")
        meta = _named_boxes(content, boxes[b"meta"][0] + _FULL_BOX, boxes[b"meta"][1])
        kinds = _item_kinds(content, *meta[b"iinf"])
        images = (
            data
            for item_id, data in _items(content, meta[b"iloc"], meta.get(b"idat", (0, 0))[0])
            if kinds.get(item_id) == b"av01"
        )
        return sum(_largest_frame(data) for data in images)
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise CorruptImageError(
            "the AVIF file cannot be read: its boxes make no sense; save it again and send that"
        ) from error


def _named_boxes(content: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Type -> start and end of the boxes that are read here; each may occur once."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, place in _boxes(content, start, end):
        if kind in found and kind in _READ_BOXES:
            raise ValueError("a box occurs twice")
        found[kind] = place
    return found


def _boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    for _ in range(_MAX_AVIF_PARTS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, start + 8)
            head = 16
        size = size or end - start  # 0: up to the end
        if size < head:
            raise ValueError("a box is shorter than its head")
        yield kind, (start + head, min(end, start + size))
        start += size
    raise ValueError("too many boxes")


def _item_kinds(content: bytes, start: int, end: int) -> Mapping[int, bytes]:
    start += _FULL_BOX + (2 if content[start] == 0 else 4)
    kinds = {}
    for _, (info, _) in _boxes(content, start, end):
        wide = content[info] == 3  # version of `infe`
        item_id, _, kind = struct.unpack_from(">IH4s" if wide else ">HH4s", content, info + 4)
        kinds[item_id] = kind
    return kinds


def _items(content: bytes, iloc: tuple[int, int], idat: int) -> Iterator[tuple[int, bytes]]:
    """The id and the data of every item, of the box `iloc`."""
    start, end = iloc
    version, sizes = content[start], content[start + 4 : start + 6]
    offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_size = sizes[1] & 15 if version else 0
    bits = _Bits(content[start + 6 : min(end, start + _MAX_ILOC_BYTES)])

    def number(size_bytes: int) -> int:
        return bits.read(8 * size_bytes)

    wide = 4 if version == 2 else 2
    parts_left, bytes_left = _MAX_AVIF_PARTS, 2 * len(content)  # items may share some of their data
    for _ in range(number(wide)):
        item_id = number(wide)
        from_idat = version > 0 and number(2) & 15 == 1
        number(2)  # data reference
        base = number(base_size) + (idat if from_idat else 0)
        data = []
        for _ in range(number(2)):
            number(index_size)
            offset, length = base + number(offset_size), number(length_size)
            data.append(content[offset : offset + length if length else None])
            parts_left, bytes_left = parts_left - 1, bytes_left - len(data[-1])
            if parts_left < 0 or bytes_left < 0:
                raise ValueError("items have more data than the file")
        yield item_id, b"".join(data)


def _largest_frame(data: bytes) -> int:
    """The largest width times height that a sequence header in the OBUs declares."""
    position, largest = 0, 0
    while position < len(data):
        head = data[position]
        position += 2 if head & 4 else 1  # an extension byte
        size = len(data) - position
        if head & 2:  # has a size field, in LEB128
            size = 0
            for shift in range(0, 56, 7):
                part = data[position]
                position += 1
                size |= (part & 127) << shift
                if part < 128:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            largest = max(largest, _declared_pixels(data[position : position + size]))
        position += size
    return largest


def _declared_pixels(header: bytes) -> int:
    bits = _Bits(header[:512])
    bits.read(4)  # profile, still picture
    if bits.read(1):  # reduced header
        bits.read(5)
    else:
        delay_bits = _read_timing(bits)
        has_display_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay_bits and bits.read(1):
                bits.read(2 * delay_bits + 1)
            if has_display_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)


def _read_timing(bits: "_Bits") -> int:
    """Skips the timing information. Returns the bits of a decoder delay; 0 without one."""
    if not bits.read(1):
        return 0
    bits.read(64)
    if bits.read(1):  # equal picture interval: a number in uvlc
        zeros = 0
        while not bits.read(1):
            zeros += 1
        bits.read(min(zeros, 32))
    if not bits.read(1):
        return 0
    delay_bits = bits.read(5) + 1
    bits.read(42)
    return delay_bits


class _Bits:
    """Reads numbers of some bits each, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header ends too early")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1
