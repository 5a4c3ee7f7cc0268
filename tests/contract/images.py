"""Image files for requests, made on the spot."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def picture(width_px: int = 64, height_px: int = 48) -> Image.Image:
    """A smooth gradient, the same every time."""
    rows, columns = np.mgrid[0:height_px, 0:width_px]
    channels = (
        255 * columns / max(width_px - 1, 1),
        255 * rows / max(height_px - 1, 1),
        np.full(rows.shape, 90),
    )
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def png_declaring(width_px: int, height_px: int) -> bytes:
    """A well-formed PNG of about 1 kB that declares that size and holds next to no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
