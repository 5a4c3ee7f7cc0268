"""Opens an image file of a format that is read, and checks all limits before it is decoded."""

import io
import re
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
from .avif import frame_pixels
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

_MAX_AVIF_COPIES = 3  # AV1 frames of one image: its tiles, its alpha channel, thumbnails


def open_image(content: bytes, limits: PixelLimits) -> Image.Image:
    """Opens the image and checks all limits. Its `info["exif"]` is what the file holds."""
    formats = ("HEIF",) if _reads_heic(content) else FORMATS
    if formats is FORMATS and _SIGNATURE.match(content) is None:
        found = next((name for name, start in _NAMED.items() if start.match(content)), None)
        what = f"{found} is not read" if found else "not an image of a format that is read"
        raise UnsupportedImageError(f"{what}; send one of {', '.join(FORMATS)}")
    file = strip_metadata(content)
    with decoder_errors():
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
def decoder_errors() -> Iterator[None]:
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
