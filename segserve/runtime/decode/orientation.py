"""The orientation of a photograph: which transposition makes its pixels upright."""

import re
import struct

from PIL.Image import Transpose

ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4

_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""By EXIF orientation, the transposition that makes the pixels upright."""

SIDEWAYS = {UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}
"""The transpositions that swap width and height."""


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """The orientation, 1 to 8 as in EXIF. It is 1 if there is none, or none that can be read.

    Any other number in the EXIF metadata is returned unchanged.
    """
    try:
        found = _in_exif(exif)
    except struct.error:  # truncated
        found = None
    if found is not None:
        return found
    match = _IN_XMP.search(xmp)
    return int(match[1]) if match else 1


def _in_exif(exif: bytes) -> int | None:
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for position in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, position)
        if tag == ORIENTATION and kind in (_SHORT, _LONG) and values == 1:
            value: int = struct.unpack_from(
                order + ("H" if kind == _SHORT else "I"), tiff, position + 8
            )[0]
            return value
    return None
