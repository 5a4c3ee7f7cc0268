"""What label maps are written as."""

from enum import StrEnum


class Format(StrEnum):
    """`png`: class ids as an indexed PNG. `npy`: as a NumPy file. `rle`: in the table alone, which always has them."""

    PNG = "png"
    NPY = "npy"
    RLE = "rle"
