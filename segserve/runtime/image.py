"""From the bytes of an image file to upright RGB pixels, within limits."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import CorruptImageError, TooLargeError, TruncatedImageError, UnsupportedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

# How files of these formats begin: tells a broken image from something that is none.
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")

# Pillow's names of grey values in 16 bits, which convert() would clip at 255.
_GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode_image(content: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decodes the first frame of an image file.

    The declared size is checked before a pixel is decoded. The EXIF orientation is applied; an alpha channel is
    dropped; grey, palette and CMYK become RGB; values of 16 bits keep their upper 8.

    Args:
        content: a JPEG, PNG, WebP, BMP, TIFF or GIF file.
        max_pixels: largest width times height.

    Returns:
        uint8 (H, W, 3), RGB, upright; own memory.

    Raises:
        UnsupportedImageError: not an image of these formats, or of a pixel type without a fixed range.
        CorruptImageError: a known format that cannot be decoded whole.
        TruncatedImageError: the same, as bytes are missing.
        TooLargeError: more pixels than `max_pixels`.
    """
    image = _open(content)
    _check_size(image, max_pixels)
    try:
        upright = ImageOps.exif_transpose(image) if _is_rotated(image) else image
        return np.array(_to_rgb(upright), dtype=np.uint8)
    except (UnsupportedImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise about anything on hostile bytes
        raise _undecodable(error) from error


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        if content.startswith(_SIGNATURES):
            raise CorruptImageError(
                "the file begins like an image, but its header cannot be read; send the file whole"
            ) from error
        raise UnsupportedImageError(f"not an image in a format that is read: {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"the image declares far too many pixels: {error}; scale it down") from error
    except Exception as error:
        raise _undecodable(error) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width_px, height_px = image.size
    if width_px < 1 or height_px < 1:
        raise CorruptImageError(f"the image declares a size of {width_px} x {height_px} pixels; nothing to segment")
    if width_px * height_px > max_pixels:
        raise TooLargeError(
            f"the image has {width_px} x {height_px} pixels, the limit is {max_pixels}; scale it down before sending"
        )


def _is_rotated(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(0x0112, 1) != 1)
    except Exception:  # metadata that cannot be read does not spoil the pixels
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_16_BIT or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnsupportedImageError(
            f"pixels of type {image.mode} (32 bits) have no fixed range; send 8 or 16 bits a channel"
        )
    return image.convert("RGB")


def _undecodable(error: Exception) -> CorruptImageError:
    reason = " ".join(str(error).split())[:120]
    if "truncated" in reason.lower() or isinstance(error, EOFError):
        return TruncatedImageError(f"the image ends too early ({reason}); send the file whole")
    return CorruptImageError(f"the image cannot be decoded ({reason}); save it again and send that")
