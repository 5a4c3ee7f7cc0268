"""The formats of the label maps."""

from enum import StrEnum


class Format(StrEnum):
    """`png`: class ids as an indexed PNG. `npy`: a NumPy file. `rle`: only the table, which always
    contains RLE.
    """

    PNG = "png"
    NPY = "npy"
    RLE = "rle"
