"""An image file without what a decoder does not need.

Pillow reads the metadata of a file in Python and keeps it, whatever it costs: a megabyte of TIFF whose tags overlap
becomes gigabytes, a comment of a GIF takes a time that grows with its square. Only the pixels of the first frame and
their orientation are of interest here; the rest is left out before Pillow sees it, and so cannot spoil an image either.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .bare_tiff import bare_tiff
from .errors import TooLargeError

MAX_PARTS = 300_000  # 64 MB of a GIF are 260,000 blocks; walking these takes 0.1 s
MAX_JPEG_SCANS = 100  # progressive files have about ten; each costs a pass over all pixels, in as little as 20 bytes
MAX_JPEG_HEADER_BYTES = 2**17  # of tables and frames, in front of the first scan: usually less than 1,000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # not the frames of an animation: IDAT is the still image

# Behind filling bytes; neither a stuffed 0xff of coded data nor a restart marker, which stand among the data.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS, _TEM, _APP0, _APP1, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE, 0xFE
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class Bare:
    """`exif` and `xmp` are the first of their kind where they were left out of the file, else empty."""

    content: bytes
    exif: bytes = b""
    xmp: bytes = b""


def bare(content: bytes) -> Bare:
    """The file without its metadata; one that is in no format known here, or too broken to tell, as it is.

    Raises:
        TooLargeError: it has so many parts that they alone would take seconds.
        CorruptImageError: a TIFF whose directory cannot be read.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(content)
    if content.startswith(_PNG_SIGNATURE):
        return _bare_png(content)
    if content.startswith((b"GIF87a", b"GIF89a")):
        return Bare(_bare_gif(content))
    if content.startswith((b"II", b"MM")):
        return Bare(bare_tiff(content))
    return Bare(content)


def _bare_jpeg(content: bytes) -> Bare:
    """Tables and frame, JFIF's and Adobe's words about colours, and everything from the first scan on."""
    kept, exif, xmp = [b"\xff\xd8"], b"", b""
    scans = 0
    for marker, start, end in _jpeg_segments(content):
        payload = start + 4
        if marker == _SOS:
            if not scans:
                kept.append(content[start:])
            scans += 1
        elif scans:
            pass  # in what is kept already
        elif marker == _APP1:
            exif = exif or (content[payload:end] if content.startswith(b"Exif\0\0", payload) else b"")
            xmp = xmp or (content[payload:end] if content.startswith(_XMP, payload) else b"")
        elif _concerns_pixels(content, marker, payload):
            kept.append(content[start:end])
        _check(scans, MAX_JPEG_SCANS, "scans")
    _check(sum(map(len, kept[:-1])), MAX_JPEG_HEADER_BYTES, "bytes of tables")
    return Bare(b"".join(kept), exif, xmp)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, beginning and end of every segment, as libjpeg goes from one to the next."""
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


def _bare_png(content: bytes) -> Bare:
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
    return Bare(b"".join(kept), exif, xmp)


def _bare_gif(content: bytes) -> bytes:
    """Of what stands before the first frame, its transparency alone."""
    position = header = 13 + (3 * 2 ** (content[10] % 8 + 1) if len(content) > 10 and content[10] & 0x80 else 0)
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
            f"the image file has more than {limit} {what}; save it again with another program, without metadata"
        )
