"""Whole files of every format and kind that is read, and where the parts of a file begin.

The walk along the parts is separate from the one in
`segserve.runtime.decode.strip_metadata`: a mistake that both share would hide itself.
"""

import struct
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from tests.unit.images import bmp_header, encoded, noise

SIDE_HW = (23, 31)


def _frames(file_format: str) -> bytes:
    frames = [Image.fromarray(noise(*SIDE_HW, seed=seed)) for seed in range(3)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    return exif


def run_length_bmp(width_px: int, height_px: int, runs: bytes, *, bits: int = 8) -> bytes:
    """A bitmap of 8 or 4 bits whose pixels are these runs, whatever they hold."""
    offset = 14 + 40 + 1024
    file_header = b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset)
    kind = 1 if bits == 8 else 2
    header = struct.pack(
        "<IiiHHIIiiII", 40, width_px, height_px, 1, bits, kind, len(runs), 0, 0, 1 << bits, 0
    )
    return file_header + header + bytes(1024) + runs


@cache
def whole_files() -> dict[str, bytes]:
    """By a name whose first word is the format."""
    rgb = Image.fromarray(noise(*SIDE_HW))
    grey16 = np.random.default_rng(0).integers(0, 2**16, SIDE_HW).astype(np.uint16)
    return {
        "jpeg": encoded(rgb, "JPEG"),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg grey": encoded(rgb.convert("L"), "JPEG"),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg restarts": encoded(rgb, "JPEG", restart_marker_blocks=1),
        "jpeg metadata": encoded(
            rgb, "JPEG", exif=_exif(), icc_profile=bytes(200), comment=b"a comment"
        ),
        "jpeg two pictures": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
        "png": encoded(rgb),
        "png palette": encoded(rgb.quantize(16), transparency=3),
        "png 16 bits": encoded(grey16),
        "png alpha": encoded(rgb.convert("RGBA")),
        "png one bit": encoded(rgb.convert("1")),
        "png metadata": encoded(rgb, exif=_exif(), icc_profile=bytes(200)),
        "png animated": _frames("PNG"),
        "webp": encoded(rgb, "WEBP"),
        "webp lossless": encoded(rgb, "WEBP", lossless=True),
        "webp alpha": encoded(rgb.convert("RGBA"), "WEBP"),
        "avif": encoded(rgb, "AVIF"),
        "avif alpha": encoded(rgb.convert("RGBA"), "AVIF", exif=_exif()),
        "webp animated": _frames("WEBP"),
        "webp metadata": encoded(rgb, "WEBP", exif=_exif(), icc_profile=bytes(200), xmp=b"<x/>"),
        "bmp": encoded(rgb, "BMP"),
        "bmp palette": encoded(rgb.quantize(16), "BMP"),
        "bmp runs": run_length_bmp(
            8, 4, b"\x08\x01\0\0\x04\x02\x04\x03\0\0\0\x04\1\2\3\4\x04\1\0\0\x08\2\0\1"
        ),
        "bmp header alone": bmp_header(31, 23),
        "tiff": encoded(rgb, "TIFF"),
        "tiff lzw": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff packbits": encoded(rgb, "TIFF", compression="packbits"),
        "tiff jpeg": encoded(rgb, "TIFF", compression="jpeg"),
        "tiff fax": encoded(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff palette": encoded(rgb.quantize(16), "TIFF"),
        "tiff 16 bits": encoded(grey16, "TIFF"),
        "tiff big": encoded(rgb, "TIFF", big_tiff=True),
        "tiff pages": encoded(rgb, "TIFF", save_all=True, append_images=[rgb, rgb]),
        "gif": encoded(rgb, "GIF"),
        "gif interlaced": encoded(rgb.convert("P"), "GIF", interlace=1),
        "gif animated": _frames("GIF"),
        "gif comment": encoded(rgb, "GIF", comment=b"a comment"),
    }


def boundaries(content: bytes) -> list[int]:
    """Offsets at which a part of the file begins or one of its lengths stands; all below its
    end.
    """
    found = sorted({0, 1, 2, 4, 8, 12, *_walk(content)})
    return [offset for offset in found if offset < len(content)]


def _walk(content: bytes) -> Iterator[int]:
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content.startswith(b"\x89PNG"):
        return _chunks(content, 8, ">I4s", 12)
    if content.startswith(b"RIFF"):
        return _chunks(content, 12, "<4sI", 8)
    if content.startswith((b"II", b"MM")):
        return _tiff(content)
    if content.startswith(b"GIF"):
        return _gif(content)
    return iter(range(min(len(content), 54)))  # the fields of a bitmap's headers


def _jpeg(content: bytes) -> Iterator[int]:
    offset = 2
    while offset + 4 <= len(content):
        if content[offset] != 0xFF or content[offset + 1] in (0x00, 0xFF, *range(0xD0, 0xD8)):
            offset += 1  # data of a scan
            continue
        yield from (offset, offset + 1, offset + 2, offset + 4)
        offset += (
            2
            if content[offset + 1] in (0xD8, 0xD9)
            else 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        )


def _chunks(content: bytes, offset: int, head: str, overhead_bytes: int) -> Iterator[int]:
    while offset + 8 <= len(content):
        length = next(
            field for field in struct.unpack_from(head, content, offset) if isinstance(field, int)
        )
        yield from (
            offset,
            offset + 3,
            offset + 4,
            offset + 8,
            offset + 8 + length // 2,
            offset + 8 + length,
        )
        offset += overhead_bytes + length


def _tiff(content: bytes) -> Iterator[int]:
    order = "<" if content.startswith(b"II") else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    start = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)[0]
    entry_bytes, head_bytes = (20, 8) if big else (12, 2)
    count = int.from_bytes(content[start : start + head_bytes], "little" if order == "<" else "big")
    for entry in range(
        start + head_bytes, start + head_bytes + entry_bytes * min(count, 100), entry_bytes
    ):
        yield from (entry, entry + 2, entry + 4, entry + 7, entry + 8)
    yield from (start, start + head_bytes + entry_bytes * count)


def _gif(content: bytes) -> Iterator[int]:
    yield from (4, 6, 8, 10, 11, 13)
    for mark in (b"!\xf9", b"!\xfe", b"!\xff", b","):
        offset = content.find(mark, 13)
        if offset >= 0:
            yield from range(offset, offset + 12)
