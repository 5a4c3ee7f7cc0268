"""Decodes the bytes of an image file to upright RGB pixels, within limits."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Transpose

from ...schema.request import Alpha
from ..errors import TooLargeError, UnsupportedImageError
from ..settings import PixelLimits
from .opening import TIFF_BITS, decoder_errors, jpeg_fraction, open_image, tiff_tags
from .strip_metadata import orientation_of

_PHOTOMETRIC = 0x106  # TIFF tag

# The transposition that makes the pixels upright, by EXIF orientation.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SIDEWAYS = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}  # swap width and height

# Pillow's modes for 16-bit grey. convert() would clip their values at 255.
_GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

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
        UnsupportedImageError: not an image of these formats, or of pixels without a fixed range.
        CorruptImageError: the file cannot be decoded completely.
        TruncatedImageError: the same, because bytes are missing.
        TooLargeError: more than `max_pixels`, or far more work than the pixels justify.
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
    image = open_image(content, limits)
    turn = _UPRIGHT.get(orientation_of(image.info.get("exif") or b""))
    declared_hw = _turned(image.size, turn)
    is_jpeg = image.format == "JPEG"
    if is_jpeg:
        image.draft(None, _turned(_wanted_hw(declared_hw, needed, limits.decoded), turn))
    with decoder_errors():
        image.load()  # also makes a TIFF upright
        rgb = _to_rgb(image, alpha)
        pixels = np.array(rgb if turn is None else rgb.transpose(turn), dtype=np.uint8)
    return Decoded(pixels, declared_hw if is_jpeg else (pixels.shape[0], pixels.shape[1]))


def _wanted_hw(
    declared_hw: tuple[int, int], needed: NeededSize | None, max_decoded: int
) -> tuple[int, int]:
    fraction = jpeg_fraction(declared_hw, max_decoded)
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


def decoded_size(content: bytes, *, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that `decode_image` would give, with the same errors, at less cost.

    The whole file is read, so truncated files are found. A JPEG is decoded at 1/8 of its size.
    """
    limits = PixelLimits(max_pixels, max_pixels)
    return decode_reduced(content, limits=limits, needed=lambda *_: (1, 1)).size_hw


def _turned(size: tuple[int, int], turn: Transpose | None) -> tuple[int, int]:
    """Stored (width, height) <-> upright (height, width)."""
    return size if turn in _SIDEWAYS else size[::-1]


def _to_rgb(image: Image.Image, alpha: Alpha) -> Image.Image:
    if image.mode in _GREY_16_BIT:
        transparent = image.info.get("transparency") if alpha == "white" else None
        return _upper_8_bits(image, transparent).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnsupportedImageError(
            "pixels that are signed, floating point or of 32 bits have no fixed range; send "
            "unsigned 8 or 16 bits a channel"
        )
    if alpha == "white" and image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    opacity = image.getchannel("A")
    if opacity.getextrema() == (255, 255):
        return image.convert("RGB")
    page = Image.new("RGB", image.size, (255, 255, 255))
    page.paste(image, mask=opacity)
    return page


def _upper_8_bits(image: Image.Image, transparent: int | None) -> Image.Image:
    """The upper 8 bits of grey values, of the bits that are used: cameras and scanners write 10 to
    14 bits into 16. A TIFF may have 0 as white, which Pillow does not convert. Pixels of the value
    `transparent` become white.
    """
    grey = np.asarray(image).astype(np.uint16)
    tags = tiff_tags(image)
    bits = max(tags.get(TIFF_BITS, (16,)))
    if bits == 16:
        bits = max(8, int(grey.max()).bit_length())
    reduced = (grey >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        reduced = 255 - reduced
    if transparent is not None:
        reduced[grey == transparent] = 255
    return Image.fromarray(reduced)
