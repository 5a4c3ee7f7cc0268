"""Strips the metadata that a decoder does not need from an image file.

Pillow reads metadata in Python and keeps all of it, whatever the cost. One megabyte of TIFF with
overlapping tags becomes gigabytes. The time for a GIF comment grows with the square of its length.
Only the pixels of the first frame and their orientation matter here. Everything else is removed
before Pillow reads the file, so broken metadata cannot make an image unreadable either.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import TooLargeError
from .strip_tiff import strip_tiff

MAX_PARTS = 300_000  # a GIF of 64 MB has 260,000 blocks; scanning them takes 0.1 s
MAX_JPEG_SCANS = (
    100  # progressive files have about ten; a scan of 20 bytes can cost a pass over all pixels
)
MAX_JPEG_HEADER_BYTES = (
    2**17
)  # tables and frame headers before the first scan: usually less than 1,000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {
    b"IHDR",
    b"PLTE",
    b"tRNS",
    b"IDAT",
    b"IEND",
}  # IDAT is the still image; animation frames are dropped

# A marker, after any fill bytes. Stuffed 0xff bytes and restart markers belong to the coded data
# and do not match.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS, _TEM, _APP0, _APP1, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE, 0xFE
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class StrippedFile:
    """A file without metadata.

    Attributes:
        exif, xmp: the first of each kind that was removed from the file, else empty.
    """

    content: bytes
    exif: bytes = b""
    xmp: bytes = b""


def strip_metadata(content: bytes) -> StrippedFile:
    """Strips the metadata from a file. Returns a file unchanged if its format is unknown or it is
    too broken to parse.

    Raises:
        TooLargeError: the file has so many parts that reading them would take seconds.
        CorruptImageError: the directory of a TIFF cannot be read.
        UnsupportedImageError: the compression of a TIFF is not supported.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return _strip_jpeg(content)
    if content.startswith(_PNG_SIGNATURE):
        return _strip_png(content)
    if content.startswith((b"GIF87a", b"GIF89a")):
        return StrippedFile(_strip_gif(content))
    if content.startswith((b"II", b"MM")):
        return StrippedFile(strip_tiff(content))
    return StrippedFile(content)


def _strip_jpeg(content: bytes) -> StrippedFile:
    """Keeps the tables, the frame header, the colour markers of JFIF and Adobe, and all data from
    the first scan on.
    """
    kept, exif, xmp = [b"\xff\xd8"], b"", b""
    scans = 0
    for marker, start, end in _jpeg_segments(content):
        payload = start + 4
        if marker == _SOS:
            if not scans:
                kept.append(content[start:])
            scans += 1
        elif scans:
            pass  # already kept with the first scan
        elif marker == _APP1:
            exif = exif or (
                content[payload:end] if content.startswith(b"Exif\0\0", payload) else b""
            )
            xmp = xmp or (content[payload:end] if content.startswith(_XMP, payload) else b"")
        elif _concerns_pixels(content, marker, payload):
            kept.append(content[start:end])
        _check(scans, MAX_JPEG_SCANS, "scans")
    _check(sum(map(len, kept[:-1])), MAX_JPEG_HEADER_BYTES, "bytes of tables")
    return StrippedFile(b"".join(kept), exif, xmp)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of every segment. Finds the next segment in the same way as
    libjpeg.
    """
    position = 2
    parts = 0
    while found := _JPEG_MARKER.search(content, position):
        marker = found.group(1)[0]
        position = found.end()
        if marker not in (_SOI, _TEM, _EOI):
            position += int.from_bytes(content[position : position + 2], "big")
        yield marker, found.start(), position
        if marker == _EOI:
            return
        parts += 1
        _check(parts, MAX_PARTS, "segments")


def _concerns_pixels(content: bytes, marker: int, payload: int) -> bool:
    if marker == _APP0:
        return content.startswith(b"JFIF\0", payload)
    if marker == _APP14:
        return content.startswith(b"Adobe", payload)
    return not _APP0 < marker <= 0xEF and marker != _COM


def _strip_png(content: bytes) -> StrippedFile:
    kept, exif, xmp = [_PNG_SIGNATURE], b"", b""
    position = len(_PNG_SIGNATURE)
    parts = 0
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind in _PNG_KEPT:
            kept.append(content[position:end])
        elif kind == b"eXIf":
            exif = exif or content[position + 8 : end - 4]
        elif kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0\0", position + 8):
            xmp = xmp or content[position + 8 : end - 4]
        position = end
        parts += 1
        _check(parts, MAX_PARTS, "chunks")
        if kind == b"IEND":
            break
    return StrippedFile(b"".join(kept), exif, xmp)


def _strip_gif(content: bytes) -> bytes:
    """Keeps only the transparency of the blocks before the first frame."""
    position = header = 13 + (
        3 * 2 ** (content[10] % 8 + 1) if len(content) > 10 and content[10] & 0x80 else 0
    )
    transparency = b""
    parts = 0
    while content[position : position + 1] == b"!":
        start = position
        position += 2
        while position < len(content) and content[position]:
            position += 1 + content[position]
            parts += 1
            _check(parts, MAX_PARTS, "blocks")
        position += 1
        parts += 1
        _check(parts, MAX_PARTS, "blocks")
        if content[start + 1 : start + 2] == b"\xf9":
            transparency = content[start:position]
    return content[:header] + transparency + content[position:]


def _check(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise TooLargeError(
            f"the image file has more than {limit} {what}; save it again with another program, "
            "without metadata"
        )
