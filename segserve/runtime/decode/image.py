"""Decodes the bytes of an image file to upright RGB pixels, within limits."""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Transpose

from ...schema.request import Alpha
from ..errors import (
    CorruptImageError,
    SegserveError,
    TooLargeError,
    TruncatedImageError,
    UnsupportedImageError,
)
from ..settings import PixelLimits
from .avif import frame_pixels
from .formats import FORMATS, HEIC_FORMAT, SIGNATURE, is_heic, unsupported
from .orientation import SIDEWAYS, UPRIGHT, orientation_of
from .strip_metadata import StrippedFile, strip_metadata

# Pillow's modes for 16-bit grey. convert() would clip their values at 255.
_GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

# TIFF tags, and the value of the tag for planes that are stored one after the other.
_BITS, _PHOTOMETRIC, _PLANES, _TILE_WIDTH, _TILE_LENGTH = 0x102, 0x106, 0x11C, 0x142, 0x143
_SAMPLE_FORMAT = 0x153
_SEPARATE = 2

_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating point"}

_JPEG_END = b"\xff\xd9"
_NOISES = tuple(bytes.fromhex(code) * 256 for code in ("5aa5c396691e", "b54b872dd23c"))  # no ff

# AV1 frames of one image: its tiles, its alpha channel, thumbnails.
_MAX_AVIF_COPIES = 3

# Pillow decodes run-length encoded bitmaps in Python, at 0.2 s per megabyte, and may write 255 rows
# beyond the image.
_MAX_RUN_LENGTH_BYTES, _MAX_RUN_LENGTH_WIDTH_PX = 2**22, 2**16

NeededSize = Callable[[int, int], tuple[int, int]]
"""(height, width) of an upright image -> the smallest (height, width) in which its pixels are
needed.
"""


class Decoded(NamedTuple):
    """The pixels of an image, and the image's own size.

    Attributes:
        rgb: uint8 (H, W, 3), RGB, upright; owns its memory. For a reduced JPEG, H and W are a
            fraction of the image's size.
        size_hw: (height, width) of the image itself, upright.
    """

    rgb: NDArray[np.uint8]
    size_hw: tuple[int, int]


def decode_image(content: bytes, *, max_pixels: int, alpha: Alpha = "white") -> NDArray[np.uint8]:
    """Decodes the first frame of an image file.

    A decoder cannot be interrupted. So the declared size, and everything else that can make
    decoding slow, is checked before any pixel is decoded. The EXIF orientation is applied. Grey,
    palette and CMYK images become RGB. Of 16-bit values, the upper 8 bits are kept; grey values
    that use fewer than 16 bits are scaled by the bits that they use.

    Args:
        content: a JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF file; HEIC if pillow-heif is installed.
        max_pixels: the largest width times height.

    Returns:
        uint8 (H, W, 3), RGB, upright; owns its memory.

    Raises:
        UnsupportedImageError: the file is not an image of these formats, or its pixel type has no
            fixed range.
        CorruptImageError: the format is known, but the file cannot be decoded completely.
        TruncatedImageError: the same, because bytes are missing.
        TooLargeError: the image has more than `max_pixels`, or the file takes far more work than
            its pixels justify.
    """
    limits = PixelLimits(max_pixels, max_pixels)
    return decode_reduced(content, limits=limits, needed=None, alpha=alpha).rgb


def decode_reduced(
    content: bytes, *, limits: PixelLimits, needed: NeededSize | None, alpha: Alpha = "white"
) -> Decoded:
    """As `decode_image`, but decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that is large enough
    for `needed`, or if the limits require it and `needed` is None.

    The JPEG decoder then skips work and not only pixels: decoding at 1/4 is several times as fast
    as at full size.
    """
    image, file = _opened(content, limits)
    turn = _turn(image, file)
    declared_hw = _turned(image.size, turn)
    is_jpeg = image.format == "JPEG"
    if is_jpeg:
        image.draft(None, _turned(_wanted_hw(declared_hw, needed, limits.decoded), turn))
    with _decoding():
        image.load()  # also makes a TIFF upright
        rgb, turn = _to_rgb(image, alpha), _turn(image, file)
        pixels = np.array(rgb if turn is None else rgb.transpose(turn), dtype=np.uint8)
    return Decoded(pixels, declared_hw if is_jpeg else (pixels.shape[0], pixels.shape[1]))


def _wanted_hw(
    declared_hw: tuple[int, int], needed: NeededSize | None, max_decoded: int
) -> tuple[int, int]:
    """The smallest (height, width) at which a JPEG is to be decoded."""
    fraction = _fraction(declared_hw, max_decoded)
    allowed_hw = max(1, declared_hw[0] // fraction), max(1, declared_hw[1] // fraction)
    if needed is None:
        return allowed_hw
    height_px, width_px = needed(*declared_hw)
    if fraction > 1 and (height_px > allowed_hw[0] or width_px > allowed_hw[1]):
        raise TooLargeError(
            f"this mode needs all {declared_hw[1]} x {declared_hw[0]} pixels of the image, the "
            f"limit is {max_decoded} pixels; use mode=whole, or scale the image down"
        )
    return height_px, width_px


def _fraction(declared_hw: tuple[int, int], max_decoded: int) -> int:
    """The smallest divisor of both sides with which a JPEG has no more pixels than the limit."""
    pixels = declared_hw[0] * declared_hw[1]
    return next((divisor for divisor in (1, 2, 4) if pixels <= max_decoded * divisor**2), 8)


def decoded_size(content: bytes, *, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that `decode_image` would give, with the same errors, at less cost.

    The whole file is read, so truncated files are found. A JPEG is decoded at 1/8 of its size.
    """
    image, file = _opened(content, PixelLimits(max_pixels, max_pixels))
    declared_wh = image.size
    with _decoding():
        reduced = image.draft("L", (1, 1)) is not None
        image.load()  # also makes a TIFF upright
        _require_fixed_range(image)
        size_wh = declared_wh if reduced else image.size
        return _turned(size_wh, _turn(image, file))


def _turned(size: tuple[int, int], turn: Transpose | None) -> tuple[int, int]:
    """Stored (width, height) <-> upright (height, width)."""
    return size if turn in SIDEWAYS else size[::-1]


def _opened(content: bytes, limits: PixelLimits) -> tuple[Image.Image, StrippedFile]:
    """Opens the image and checks all limits. Also returns the file that Pillow reads."""
    file = strip_metadata(content)
    image = _open(file.content, limits)
    _check_size(image, limits)
    with _decoding():
        _check_tags(image, limits.decoded)
        _check_run_lengths(image, len(content))
        if file.lacks_end:
            fraction = _fraction(image.size, limits.decoded)
            file = replace(file, content=_with_end(file.content, fraction))
            image = _open(file.content, limits)
    return image, file


def _open(content: bytes, limits: PixelLimits) -> Image.Image:
    heic = _reads_heic(content)
    if SIGNATURE.match(content) is None and not heic:
        raise unsupported(content)
    try:
        if content[4:12] == b"ftypavif":
            _check_frames(content, limits.decoded)
        return Image.open(io.BytesIO(content), formats=(HEIC_FORMAT,) if heic else FORMATS)
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise TooLargeError(
            f"the image has {found[0] if found else 'too many'} pixels, the limit is "
            f"{limits.declared}; scale it down before sending"
        ) from error
    except SegserveError:
        raise
    except Exception as error:
        if not isinstance(error, UnidentifiedImageError):
            raise _undecodable(error) from error
        raise CorruptImageError(
            "the file begins like an image, but its header cannot be read; send it whole, or saved "
            "as 8-bit RGB"
        ) from error


def _reads_heic(content: bytes) -> bool:
    """Whether the file is HEIC and the package pillow-heif is installed. Registers it then."""
    if not is_heic(content):
        return False
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _check_frames(content: bytes, max_decoded: int) -> None:
    pixels = frame_pixels(content)
    if pixels > _MAX_AVIF_COPIES * max_decoded:
        raise TooLargeError(
            f"the frames of the AVIF file have {pixels} pixels, the limit is "
            f"{_MAX_AVIF_COPIES * max_decoded}; scale the image down before sending"
        )


def _with_end(content: bytes, fraction: int) -> bytes:
    """A JPEG with its missing end marker, as some cameras write it.

    libjpeg fills missing pixels with grey and reports no error. So the file is decoded with
    different continuations. If no data is missing, all give the same pixels.

    Raises:
        TruncatedImageError: data is missing.
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
    tags = _tiff_tags(image)
    width_px, height_px = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width_px * height_px > max_decoded:
        raise TooLargeError(
            f"tiles of {width_px} x {height_px} pixels, the limit is {max_decoded} pixels; save it "
            "in smaller ones"
        )
    bits = tags.get(_BITS, (1,))
    if len(bits) > 1 and max(bits) > 8 and tags.get(_PLANES) == _SEPARATE:
        raise UnsupportedImageError(
            f"a TIFF with separate planes of {max(bits)} bits is not read; save it with 8 bits a "
            "channel, or with interleaved channels"
        )


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _check_run_lengths(image: Image.Image, size_bytes: int) -> None:
    tiles = getattr(image, "tile", ())
    if not tiles or tiles[0].codec_name != "bmp_rle":
        return
    if size_bytes > _MAX_RUN_LENGTH_BYTES or image.width > _MAX_RUN_LENGTH_WIDTH_PX:
        raise TooLargeError(
            f"a run-length encoded bitmap of {image.width} pixels a row in {size_bytes} bytes, the "
            f"limits are {_MAX_RUN_LENGTH_WIDTH_PX} and {_MAX_RUN_LENGTH_BYTES}; save it without "
            "that encoding, or as PNG"
        )


def _turn(image: Image.Image, file: StrippedFile) -> Transpose | None:
    """The transposition that makes the image upright.

    WebP files keep their metadata, because libwebp reads it at no cost.
    """
    exif = file.exif or image.info.get("exif") or b""
    xmp = file.xmp or image.info.get("xmp") or b""
    return UPRIGHT.get(orientation_of(exif, xmp))


def _to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    if image.mode in _GREY_16_BIT:
        return _upper_8_bits(image).convert("RGB")
    _require_fixed_range(image)
    if alpha == "white" and image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """What a person sees of an image with transparent pixels, on a white page."""
    image = image.convert("RGBA")
    opacity = image.getchannel("A")
    if opacity.getextrema() == (255, 255):
        return image.convert("RGB")
    page = Image.new("RGB", image.size, (255, 255, 255))
    page.paste(image, mask=opacity)
    return page


def _require_fixed_range(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        tags = _tiff_tags(image)
        kind = _SAMPLE_FORMATS.get(max(tags.get(_SAMPLE_FORMAT, (0,))), "")
        bits = max(tags.get(_BITS, (32,)))
        raise UnsupportedImageError(
            f"pixels of {kind} {bits} bits have no fixed range; send unsigned 8 or 16 bits a "
            "channel"
        )


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits of grey values, of the bits that are used: cameras and scanners write 10 to
    14 bits into 16. A TIFF may have 0 as white, which Pillow does not convert.
    """
    grey = np.asarray(image).astype(np.uint16)
    tags = _tiff_tags(image)
    bits = max(tags.get(_BITS, (16,)))
    if bits == 16:
        bits = max(8, int(grey.max()).bit_length())
    reduced = (grey >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - reduced if tags.get(_PHOTOMETRIC) == 0 else reduced)


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except (SegserveError, MemoryError):
        raise
    except Exception as error:  # on hostile bytes, Pillow may raise any exception
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> CorruptImageError:
    """Quotes the decoder's own message, but not Python's about a malformed header."""
    reported = isinstance(error, OSError | ValueError | SyntaxError | EOFError)
    reason = (" ".join(str(error).split())[:120] if reported else "") or "its header makes no sense"
    if "truncated" in reason.lower() or isinstance(error, EOFError):
        return TruncatedImageError(f"the image ends too early ({reason}); send the file whole")
    return CorruptImageError(f"the image cannot be decoded ({reason}); save it again and send that")
