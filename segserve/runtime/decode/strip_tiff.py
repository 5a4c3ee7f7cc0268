"""Rewrites a TIFF so that it has one directory with only the tags that describe pixels.

Sources: TIFF 6.0 (Adobe, 1992), section 2, and BigTIFF (Aware Systems, 2007), which has 64-bit
    counts and offsets.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import TooLargeError, TruncatedImageError, UnsupportedImageError

MAX_TAG_VALUES = 2**16
"""The largest number of strips or tiles of an image: 16 megapixels in tiles of 16 x 16 pixels."""

_COMPRESSION = 0x103
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
    *(
        0x100,
        0x101,
        0x102,
        _COMPRESSION,
        0x106,
        0x10A,
    ),  # width, length, bits, compression, photometric, fill order
    *(
        0x111,
        0x112,
        0x115,
        0x116,
        0x117,
        0x11C,
    ),  # strips, orientation, samples, rows a strip, byte counts, planes
    *(0x124, 0x125, 0x13D, 0x140),  # fax options, predictor, colour map
    *(
        0x142,
        0x143,
        0x144,
        0x145,
        0x152,
        0x153,
        0x15B,
    ),  # tiles, extra samples, sample format, JPEG tables
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
        UnsupportedImageError: the compression is not supported.
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


def _check_compression(entry: bytes | None, order: str) -> None:
    if entry is None:
        return
    (compression,) = struct.unpack_from(
        order + "H", entry, len(entry) - (4 if len(entry) == 12 else 8)
    )
    if compression not in _COMPRESSIONS:
        names = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UnsupportedImageError(
            f"compression {compression} of the TIFF is not read; these are: {names}"
        )
