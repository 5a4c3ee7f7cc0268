"""Image files made on the spot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(height_px: int, width_px: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3), the same every time."""
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def smooth(height_px: int, width_px: int) -> np.ndarray:
    """uint8 (H, W, 3): gradients, which lossy formats keep nearly as they are; no two corners
    alike.
    """
    rows, columns = np.mgrid[0:height_px, 0:width_px]
    red, green = 220 * rows / max(height_px - 1, 1), 220 * columns / max(width_px - 1, 1)
    return np.stack([red, green, np.full(rows.shape, 90)], axis=-1).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, file_format: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(
    width_px: int, height_px: int, *, bits: int = 8, color: int = 2, scanlines: bytes = b""
) -> bytes:
    """A PNG file with that header (`color` is the PNG's colour type) over those scanlines, whatever
    they hold.
    """
    header = struct.pack(">IIBBBBB", width_px, height_px, bits, color, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(scanlines, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp_header(width_px: int, height_px: int) -> bytes:
    """A BMP file of 24 bits that ends behind its header."""
    file_header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return file_header + struct.pack(
        "<IiiHHIIiiII", 40, width_px, height_px, 1, 24, 0, 0, 0, 0, 0, 0
    )


def gif_of_size(width_px: int, height_px: int) -> bytes:
    """A GIF whose only frame is empty."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width_px, height_px, 0) + b"\x02\x00"
    return b"GIF89a" + struct.pack("<HH", width_px, height_px) + b"\0\0\0" + frame + b";"


def grey_tiff(
    strip: bytes, *, width_px: int, height_px: int, bits: int, white_is_zero: bool = False
) -> bytes:
    """An uncompressed little-endian TIFF of one channel, written by hand: Pillow writes neither 12
    bits nor inverted grey."""
    tags = [
        (0x100, width_px),
        (0x101, height_px),
        (0x102, bits),
        (0x103, 1),
        (0x106, 0 if white_is_zero else 1),
        (0x111, 8 + 2 + 12 * 9 + 4),
        (0x115, 1),
        (0x116, height_px),
        (0x117, len(strip)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + strip
