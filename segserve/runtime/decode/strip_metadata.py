"""Strips the metadata that a decoder does not need from an image file.

Pillow reads metadata in Python and keeps all of it, whatever the cost. One megabyte of TIFF with
overlapping tags becomes gigabytes. The time for a GIF comment grows with the square of its length.
Only the pixels of the first frame and their orientation matter here. Everything else is removed
before Pillow reads the file, so broken metadata cannot make an image unreadable either.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import TooLargeError, TruncatedImageError, UnsupportedImageError

_SHORT, _LONG = 3, 4  # the types of 16-bit and 32-bit values
MAX_TAG_VALUES = 2**16
"""The largest number of strips or tiles of an image: 16 megapixels in tiles of 16 x 16 pixels."""

_SUBFILE_TYPE, _COMPRESSION, _ORIENTATION = 0xFE, 0x103, 0x112
_IS_REDUCED = 1  # bit of the subfile type: the image is a reduced copy of another one in the file
# None, CCITT, LZW, JPEG, deflate, PackBits, Zstandard and WebP. libtiff's others are rare, and
# rarely tested on hostile input.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000, 50001}
_KEPT = {
    *(_SUBFILE_TYPE, 0x100, 0x101, 0x102),  # subfile type, width, length, bits
    *(_COMPRESSION, 0x106, 0x10A),  # compression, photometric, fill order
    *(0x111, _ORIENTATION, 0x115, 0x116),  # strips, orientation, samples, rows a strip
    *(0x117, 0x11C),  # byte counts, planes
    *(0x124, 0x125, 0x13D, 0x140),  # fax options, predictor, colour map
    *(0x142, 0x143, 0x144, 0x145),  # tiles
    *(0x152, 0x153, 0x15B),  # extra samples, sample format, JPEG tables
    *(0x211, 0x212, 0x213, 0x214),  # YCbCr
}
_ENTRY_BYTES = 12  # tag, type, number of values, and the value or its offset


class _Directory(NamedTuple):
    """The first directory of a TIFF.

    Attributes:
        start: its position in the file.
        order: of the bytes, for `struct`.
        entries: by tag, the entries of the kept tags, unchanged.
    """

    start: int
    order: str
    entries: dict[int, bytes]

    def number(self, tag: int) -> int:
        """The value of a tag that is one number of 16 or 32 bits, else 0."""
        entry = self.entries.get(tag, bytes(_ENTRY_BYTES))
        kind, values = struct.unpack_from(self.order + "HI", entry, 2)
        if kind not in (_SHORT, _LONG) or values != 1:
            return 0
        value: int
        (value,) = struct.unpack_from(self.order + ("H" if kind == _SHORT else "I"), entry, 8)
        return value


def _directory(content: bytes) -> _Directory:
    """Reads the directory. Raises struct.error where the file is too short."""
    order = "<" if content.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    entries = {}
    for position in range(start + 2, start + 2 + _ENTRY_BYTES * count, _ENTRY_BYTES):
        tag, *_ = struct.unpack_from(order + "HHI4s", content, position)
        if tag in _KEPT:
            entries[tag] = content[position : position + _ENTRY_BYTES]
    return _Directory(start, order, entries)


def orientation_of(exif: bytes) -> int:
    """The orientation that EXIF metadata names; 1, upright, if there is none that can be read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if not tiff.startswith((b"II", b"MM")):
        return 1
    try:
        return _directory(tiff).number(_ORIENTATION) or 1
    except struct.error:
        return 1


def _strip_tiff(content: bytes) -> bytes:
    """Keeps only these tags in the first directory, and removes all other directories."""
    try:
        directory = _directory(content)
    except struct.error as error:
        raise TruncatedImageError(
            "the image ends before its directory does; send the file whole"
        ) from error
    start, order, entries = directory
    _check_tiff(directory)
    kept = struct.pack(order + "H", len(entries)) + b"".join(
        entries[tag] for tag in sorted(entries)
    )
    kept += bytes(4)  # no next directory
    # Overwrite the old directory, which is at least as long. Appended to the file, the directory
    # would be read as pixels if the file is truncated.
    return b"".join((content[:start], kept, content[start + len(kept) :]))


def _check_tiff(directory: _Directory) -> None:
    for tag, entry in directory.entries.items():
        (values,) = struct.unpack_from(directory.order + "I", entry, 4)
        if values > MAX_TAG_VALUES:
            raise TooLargeError(
                f"tag {tag} of the TIFF has {values} values, the limit is {MAX_TAG_VALUES}; use "
                "larger strips"
            )
    compression = directory.number(_COMPRESSION)
    if _COMPRESSION in directory.entries and compression not in _COMPRESSIONS:
        raise UnsupportedImageError(
            f"compression {compression} of the TIFF is not read; save it with LZW or deflate"
        )
    if directory.number(_SUBFILE_TYPE) & _IS_REDUCED:
        raise UnsupportedImageError(
            "the file begins with a reduced copy, as raw files of cameras (NEF, CR2) do; export "
            "the photograph as JPEG or 8-bit TIFF"
        )


MAX_PARTS = 300_000  # a GIF of 64 MB has 260,000 blocks; scanning them takes 0.1 s
# Progressive files have about ten; a scan of 20 bytes can cost a pass over all pixels.
MAX_JPEG_SCANS = 100
MAX_JPEG_SCANS_IF_LARGE = 25  # above this number of pixels, where each pass costs up to 0.1 s
_LARGE_JPEG_PIXELS = 2**24
MAX_JPEG_HEADER_BYTES = 2**17  # before the first scan: usually less than 1,000

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# IDAT is the still image; animation frames are dropped.
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}

# A marker, after any fill bytes. Stuffed 0xff bytes and restart markers belong to the coded data
# and do not match.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_BASELINE = (0xC0, 0xC1)
_PROGRESSIVE = 0xC2
# Start-of-frame markers. 0xc4, 0xc8 and 0xcc are other segments.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ZEROS = 16  # a file that ends with so many zero bytes was not written to its end
_SOI, _EOI, _SOS, _TEM, _APP0, _APP1, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE, 0xFE


class StrippedFile(NamedTuple):
    """A file without metadata.

    Attributes:
        exif: the EXIF metadata that was removed from the file.
        lacks_end: the file is a JPEG with one scan and without the marker that ends it.
    """

    content: bytes
    exif: bytes = b""
    lacks_end: bool = False


def strip_metadata(content: bytes) -> StrippedFile:
    """Strips the metadata from a file. Returns a file unchanged if its format is unknown or it is
    too broken to parse.

    Raises:
        TooLargeError: the file has so many parts that reading them would take seconds.
        TruncatedImageError: a JPEG ends in zeros, or the directory of a TIFF lies outside the file.
        UnsupportedImageError: a JPEG is neither baseline nor progressive, the compression of a
            TIFF is not supported, or it is the raw file of a camera.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return _strip_jpeg(content)
    if content.startswith(_PNG_SIGNATURE):
        return _strip_png(content)
    if content.startswith((b"GIF87a", b"GIF89a")):
        return StrippedFile(_strip_gif(content))
    if content.startswith((b"II", b"MM")):
        return StrippedFile(_strip_tiff(content))
    return StrippedFile(content)


def _strip_jpeg(content: bytes) -> StrippedFile:
    """Keeps what pixels need: tables, headers, colour markers, and the data from the first scan."""
    kept, exif = [b"\xff\xd8"], b""
    scans, max_scans, components, has_end = 0, MAX_JPEG_SCANS, -1, False
    for marker, start, end in _jpeg_segments(content):
        payload = start + 4
        has_end = marker == _EOI
        if marker in _FRAMES:
            max_scans, components = _read_frame(content, marker, payload)
        if marker == _SOS:
            if not scans:
                kept.append(content[start:])
            scans += 1
            components -= _byte_at(content, payload)
            _check(scans, max_scans, "scans")
        elif scans:
            pass  # already kept with the first scan
        elif marker == _APP1:
            segment = content[payload:end]
            exif = exif or (segment if segment.startswith(b"Exif\0\0") else b"")
        elif _concerns_pixels(content, marker, payload):
            kept.append(content[start:end])
    _check(sum(map(len, kept[:-1])), MAX_JPEG_HEADER_BYTES, "bytes of tables")
    if not has_end and not any(content[-_ZEROS:]):
        raise TruncatedImageError("the image ends in zeros; send the file whole")
    lacks_end = not has_end and scans == 1 and components == 0
    if lacks_end:
        kept[-1] = kept[-1].removesuffix(b"\xff")
    return StrippedFile(b"".join(kept), exif, lacks_end)


def _read_frame(content: bytes, marker: int, payload: int) -> tuple[int, int]:
    """Checks a start of frame. Returns the limit of its scans, and its components; -1 if it may
    have scans that improve the image.

    libjpeg-turbo writes outside its memory if it reduces a lossless JPEG. It decodes arithmetic
    coding so slowly that a file of 3 kB costs 9 s. Photographs use neither.
    """
    if marker not in (*_BASELINE, _PROGRESSIVE):
        raise UnsupportedImageError(
            f"a lossless, hierarchical or arithmetic-coded JPEG (frame type SOF{marker - 0xC0}) is "
            "not read; save it as baseline or progressive JPEG, or as PNG"
        )
    pixels = _short_at(content, payload + 1) * _short_at(content, payload + 3)
    max_scans = MAX_JPEG_SCANS if pixels <= _LARGE_JPEG_PIXELS else MAX_JPEG_SCANS_IF_LARGE
    return max_scans, -1 if marker == _PROGRESSIVE else _byte_at(content, payload + 5)


def _byte_at(content: bytes, position: int) -> int:
    return content[position] if position < len(content) else -1


def _short_at(content: bytes, position: int) -> int:
    return int.from_bytes(content[position : position + 2], "big")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of every segment, found as libjpeg finds them."""
    position, parts = 2, 0
    while found := _JPEG_MARKER.search(content, position):
        marker = found.group(1)[0]
        position = found.end()
        if marker not in (_SOI, _TEM, _EOI):
            position += _short_at(content, position)
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
    kept, exif = [_PNG_SIGNATURE], b""
    position, parts = len(_PNG_SIGNATURE), 0
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind in _PNG_KEPT:
            kept.append(content[position:end])
        elif kind == b"eXIf":
            exif = exif or content[position + 8 : end - 4]
        position = end
        parts += 1
        _check(parts, MAX_PARTS, "chunks")
        if kind == b"IEND":
            break
    return StrippedFile(b"".join(kept), exif)


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
