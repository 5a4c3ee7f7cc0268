"""The limits of the decoder. This module imports no decoder."""

from typing import NamedTuple


class PixelLimits(NamedTuple):
    """The largest number of pixels of an image.

    Attributes:
        declared: the largest width times height of a file.
        decoded: the largest number of pixels in memory. A JPEG with more is decoded at 1/2, 1/4 or
            1/8 of its size; images of other formats are rejected.
    """

    declared: int
    decoded: int
