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
from typing import NamedTuple

from ..errors import TooLargeError, TruncatedImageError, UnsupportedImageError

_LONG = 4  # the type of 32-bit values
MAX_TAG_VALUES = 2**16
"""The largest number of strips or tiles of an image: 16 megapixels in tiles of 16 x 16 pixels."""

_SUBFILE_TYPE, _COMPRESSION = 0xFE, 0x103
_IS_REDUCED = 1  # bit of the subfile type: the image is a reduced copy of another one in the file
_COMPRESSIONS = {  # supported; libtiff's others are rare, and rarely tested on hostile input
    1: "none",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    50000: "Zstandard",
    50001: "WebP",
}
_KEPT = {
    *(_SUBFILE_TYPE, 0x100, 0x101, 0x102),  # subfile type, width, length, bits
    *(_COMPRESSION, 0x106, 0x10A),  # compression, photometric, fill order
    *(0x111, 0x112, 0x115, 0x116),  # strips, orientation, samples, rows a strip
    *(0x117, 0x11C),  # byte counts, planes
    *(0x124, 0x125, 0x13D, 0x140),  # fax options, predictor, colour map
    *(0x142, 0x143, 0x144, 0x145),  # tiles
    *(0x152, 0x153, 0x15B),  # extra samples, sample format, JPEG tables
    *(0x211, 0x212, 0x213, 0x214),  # YCbCr
}


class _Layout(NamedTuple):
    """The layout of a directory, as formats of `struct` without byte order."""

    first: int  # position of the first directory's offset
    offset: str
    length: str  # number of entries
    entry: str  # tag, type, number of values, then the values or their offset


_CLASSIC = _Layout(4, "I", "H", "HHI4s")
_BIG = _Layout(8, "Q", "Q", "HHQ8s")


def strip_tiff(content: bytes) -> bytes:
    """Keeps only these tags in the first directory, and removes all other directories.

    Raises:
        TruncatedImageError: the directory lies outside the file.
        TooLargeError: a tag has more values than an image can need.
        UnsupportedImageError: the compression is not supported, or the first image is the preview
            of a camera's raw file.
    """
    order = "<" if content.startswith(b"II") else ">"
    layout = _BIG if content[2:4] == struct.pack(order + "H", 43) else _CLASSIC
    try:
        (start,) = struct.unpack_from(order + layout.offset, content, layout.first)
        entries = dict(_entries(content, start, order, layout))
    except (struct.error, OverflowError) as error:
        raise TruncatedImageError(
            "the image ends before its directory does; send the file whole"
        ) from error
    _check_compression(entries.get(_COMPRESSION), order)
    if _value(entries.get(_SUBFILE_TYPE), order) & _IS_REDUCED:
        raise UnsupportedImageError(
            "the file begins with a reduced copy, as raw files of cameras (NEF, CR2) do; export "
            "the photograph as JPEG or 8-bit TIFF"
        )
    directory = struct.pack(order + layout.length, len(entries)) + b"".join(
        entries[tag] for tag in sorted(entries)
    )
    directory += struct.pack(order + layout.offset, 0)  # no next directory
    # Overwrite the old directory, which is at least as long. Appended to the file, the directory
    # would be read as pixels if the file is truncated.
    return b"".join((content[:start], directory, content[start + len(directory) :]))


def _entries(
    content: bytes, start: int, order: str, layout: _Layout
) -> Iterator[tuple[int, bytes]]:
    """Yields the kept tags of the directory at `start`, with their entries unchanged."""
    (count,) = struct.unpack_from(order + layout.length, content, start)
    position = start + struct.calcsize(order + layout.length)
    size_bytes = struct.calcsize(order + layout.entry)
    for _ in range(count):
        tag, _, values, _ = struct.unpack_from(order + layout.entry, content, position)
        if tag in _KEPT:
            if values > MAX_TAG_VALUES:
                raise TooLargeError(
                    f"tag {tag} of the TIFF has {values} values, the limit is {MAX_TAG_VALUES}; "
                    "use larger strips"
                )
            yield tag, content[position : position + size_bytes]
        position += size_bytes


def _value(entry: bytes | None, order: str) -> int:
    """The lower 16 bits of a tag's first value; 0 without an entry."""
    if entry is None:
        return 0
    kind = struct.unpack_from(order + "H", entry, 2)[0]
    position = len(entry) - (4 if len(entry) == 12 else 8)
    value: int = struct.unpack_from(order + ("I" if kind == _LONG else "H"), entry, position)[0]
    return value & 0xFFFF


def _check_compression(entry: bytes | None, order: str) -> None:
    compression = _value(entry, order)
    if entry is not None and compression not in _COMPRESSIONS:
        names = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UnsupportedImageError(
            f"compression {compression} of the TIFF is not read; these are: {names}"
        )


MAX_PARTS = 300_000  # a GIF of 64 MB has 260,000 blocks; scanning them takes 0.1 s
# Progressive files have about ten; a scan of 20 bytes can cost a pass over all pixels.
MAX_JPEG_SCANS = 100
MAX_JPEG_HEADER_BYTES = 2**17  # before the first scan: usually less than 1,000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# IDAT is the still image; animation frames are dropped.
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}

# A marker, after any fill bytes. Stuffed 0xff bytes and restart markers belong to the coded data
# and do not match.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS, _TEM, _APP0, _APP1, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE, 0xFE
_BASELINE = (0xC0, 0xC1)  # the other frame types may have scans that improve the image
_ZEROS = 16  # a file that ends with so many zero bytes was not written to its end
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class StrippedFile:
    """A file without metadata.

    Attributes:
        exif, xmp: the first of each kind that was removed from the file, else empty.
        lacks_end: the file is a JPEG with one scan and without the marker that ends it.
    """

    content: bytes
    exif: bytes = b""
    xmp: bytes = b""
    lacks_end: bool = False


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
    """Keeps what pixels need: tables, headers, colour markers, and the data from the first scan."""
    kept, exif, xmp = [b"\xff\xd8"], b"", b""
    scans, components, has_end = 0, -1, False
    for marker, start, end in _jpeg_segments(content):
        payload = start + 4
        has_end = marker == _EOI
        if marker in _BASELINE:
            components = _byte_at(content, payload + 5)
        if marker == _SOS:
            if not scans:
                kept.append(content[start:])
            scans += 1
            components -= _byte_at(content, payload)
        elif scans:
            pass  # already kept with the first scan
        elif marker == _APP1:
            segment = content[payload:end]
            exif = exif or (segment if segment.startswith(b"Exif\0\0") else b"")
            xmp = xmp or (segment if segment.startswith(_XMP) else b"")
        elif _concerns_pixels(content, marker, payload):
            kept.append(content[start:end])
        _check(scans, MAX_JPEG_SCANS, "scans")
    _check(sum(map(len, kept[:-1])), MAX_JPEG_HEADER_BYTES, "bytes of tables")
    if not has_end and not any(content[-_ZEROS:]):
        raise TruncatedImageError("the image ends in zeros; send the file whole")
    lacks_end = not has_end and scans == 1 and components == 0
    if lacks_end:
        kept[-1] = kept[-1].removesuffix(b"\xff")
    return StrippedFile(b"".join(kept), exif, xmp, lacks_end)


def _byte_at(content: bytes, position: int) -> int:
    return content[position] if position < len(content) else -1


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of every segment, found as libjpeg finds them."""
    position, parts = 2, 0
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
    position, parts = len(_PNG_SIGNATURE), 0
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
    position = header = 13
    if len(content) > 10 and content[10] & 0x80:  # a global colour table
        position = header = 13 + 3 * 2 ** (content[10] % 8 + 1)
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
        if content[start + 1 : start + 2] == b"\xf9":
            transparency = content[start:position]
    return content[:header] + transparency + content[position:]


def _check(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise TooLargeError(
            f"the image file has more than {limit} {what}; save it again with another program, "
            "without metadata"
        )
