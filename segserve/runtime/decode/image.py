"""Decodes the bytes of an image file to upright RGB pixels, within limits."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Transpose

from ..errors import (
    CorruptImageError,
    SegserveError,
    TooLargeError,
    TruncatedImageError,
    UnsupportedImageError,
)
from .orientation import orientation_of
from .strip_metadata import StrippedFile, strip_metadata

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

# The first bytes of these formats. They distinguish a broken image from a file that is not an
# image.
_SIGNATURE = re.compile(
    rb"\xff\xd8|\x89PNG|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|GIF8", re.DOTALL
)

# Pillow's modes for 16-bit grey. convert() would clip their values at 255.
_GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

_BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 0x0102, 0x0106, 0x0142, 0x0143  # TIFF tags

# Pillow decodes run-length encoded bitmaps in Python, at 0.2 s per megabyte, and may write 255 rows
# beyond the image.
_MAX_RUN_LENGTH_BYTES, _MAX_RUN_LENGTH_WIDTH_PX = 2**22, 2**16

# By EXIF orientation, the transposition that makes the pixels upright.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SIDEWAYS = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}  # these swap width and height


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


def decode_image(content: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes the first frame of an image file.

    A decoder cannot be interrupted. So the declared size, and everything else that can make
    decoding slow, is checked before any pixel is decoded. The EXIF orientation is applied. An alpha
    channel is dropped. Grey, palette and CMYK images become RGB. 16-bit values keep their upper 8
    bits.

    Args:
        content: a JPEG, PNG, WebP, BMP, TIFF or GIF file.
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
    return decode_reduced(content, max_pixels=max_pixels, needed=None).rgb


def decode_reduced(content: bytes, *, max_pixels: int, needed: NeededSize | None) -> Decoded:
    """As `decode_image`, but decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that is large enough
    for `needed`.

    The JPEG decoder then skips work and not only pixels: decoding at 1/4 is several times as fast
        as at full size.
    """
    image, file = _opened(content, max_pixels)
    declared_hw = _upright_hw(image.size, _turn(image, file))
    is_jpeg = (
        needed is not None
        and image.draft(None, _stored_wh(needed(*declared_hw), _turn(image, file))) is not None
    )
    with _decoding():
        image.load()  # also makes a TIFF upright
        rgb, turn = _to_rgb(image), _turn(image, file)
        pixels = np.array(rgb if turn is None else rgb.transpose(turn), dtype=np.uint8)
    return Decoded(pixels, declared_hw if is_jpeg else (pixels.shape[0], pixels.shape[1]))


def decoded_size(content: bytes, *, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that `decode_image` would give, with the same errors, at less cost.

    The whole file is read, so truncated files are found. A JPEG is decoded at 1/8 of its size.
    """
    image, file = _opened(content, max_pixels)
    declared_wh = image.size
    with _decoding():
        reduced = image.draft("L", (1, 1)) is not None
        image.load()  # also makes a TIFF upright
        _require_fixed_range(image)
        size_wh = declared_wh if reduced else image.size
        return _upright_hw(size_wh, _turn(image, file))


def _upright_hw(stored_wh: tuple[int, int], turn: Transpose | None) -> tuple[int, int]:
    return stored_wh if turn in _SIDEWAYS else stored_wh[::-1]


def _stored_wh(upright_hw: tuple[int, int], turn: Transpose | None) -> tuple[int, int]:
    return upright_hw if turn in _SIDEWAYS else upright_hw[::-1]


def _opened(content: bytes, max_pixels: int) -> tuple[Image.Image, StrippedFile]:
    """Opens the image and checks all limits, without decoding pixels. Also returns the file that
    Pillow reads.
    """
    file = strip_metadata(content)
    image = _open(file.content)
    _check_size(image, max_pixels)
    with _decoding():
        _check_tiles(image, max_pixels)
        _check_run_lengths(image, len(content))
    return image, file


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"the image declares far too many pixels: {error}; scale it down"
        ) from error
    except Exception as error:
        if not _SIGNATURE.match(content):
            raise UnsupportedImageError(
                f"not an image in a format that is read: {', '.join(FORMATS)}"
            ) from error
        if not isinstance(error, UnidentifiedImageError):
            raise _undecodable(error) from error
        raise CorruptImageError(
            "the file begins like an image, but its header cannot be read; send it whole, or saved "
            "as 8-bit RGB"
        ) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width_px, height_px = image.size
    if width_px < 1 or height_px < 1:
        raise CorruptImageError(
            f"the image declares a size of {width_px} x {height_px} pixels; nothing to segment"
        )
    if width_px * height_px > max_pixels:
        raise TooLargeError(
            f"the image has {width_px} x {height_px} pixels, the limit is {max_pixels}; scale it "
            "down before sending"
        )


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
    """Checks the tiles of a TIFF. They may be larger than the image, and the decoder decodes whole
    tiles.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    width_px, height_px = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width_px * height_px > max_pixels:
        raise TooLargeError(
            f"tiles of {width_px} x {height_px} pixels, the limit is {max_pixels} pixels; save it "
            "in smaller ones"
        )


def _check_run_lengths(image: Image.Image, size_bytes: int) -> None:
    tiles = getattr(image, "tile", ())
    if not tiles or tiles[0].codec_name != "bmp_rle":
        return
    if size_bytes > _MAX_RUN_LENGTH_BYTES or image.width > _MAX_RUN_LENGTH_WIDTH_PX:
        raise TooLargeError(
            f"a run-length encoded bitmap of {image.width} pixels a row in {size_bytes} bytes, the "
            "limits are "
            f"{_MAX_RUN_LENGTH_WIDTH_PX} and {_MAX_RUN_LENGTH_BYTES}; save it without that "
            "encoding, or as PNG"
        )


def _turn(image: Image.Image, file: StrippedFile) -> Transpose | None:
    """The transposition that makes the image upright.

    WebP files keep their metadata, because libwebp reads it at no cost.
    """
    return _UPRIGHT.get(
        orientation_of(
            file.exif or image.info.get("exif", b""), file.xmp or image.info.get("xmp", b"")
        )
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_16_BIT:
        return _upper_8_bits(image).convert("RGB")
    _require_fixed_range(image)
    return image.convert("RGB")


def _require_fixed_range(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise UnsupportedImageError(
            f"pixels of type {image.mode} (32 bits) have no fixed range; send 8 or 16 bits a "
            "channel"
        )


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits of grey values. In a TIFF they may have 12 bits, or 0 as white; Pillow
    converts neither.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = max(tags.get(_BITS, (16,)))
    grey = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey)


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except (SegserveError, MemoryError):
        raise
    except Exception as error:  # on hostile bytes, Pillow may raise any exception
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> CorruptImageError:
    """Quotes the decoder's own message, but not Python's internal messages about a malformed
    header.
    """
    told = isinstance(error, OSError | ValueError | SyntaxError | EOFError)
    reason = (" ".join(str(error).split())[:120] if told else "") or "its header makes no sense"
    if "truncated" in reason.lower() or isinstance(error, EOFError):
        return TruncatedImageError(f"the image ends too early ({reason}); send the file whole")
    return CorruptImageError(f"the image cannot be decoded ({reason}); save it again and send that")
