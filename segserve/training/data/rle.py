"""Run-length encoded masks of COCO JSON: runs of 0 and 1 in turn, down the columns from left to
right.
"""

import numpy as np
from numpy.typing import NDArray

Runs = NDArray[np.int64]
"""int64 (runs,): how many pixels are 0, then how many are 1, and so on in turn."""

_ZERO = ord("0")  # what is added to six bits to make a character
_MORE, _SIGN, _VALUE = 0x20, 0x10, 0x1F
_LONGEST = 6  # characters of a number; 30 bits are more pixels than are ever read


def read_runs(counts: object, *, height_px: int, width_px: int) -> Runs:
    """Run lengths from a list of them, or from pycocotools' compressed text.

    pycocotools decodes counts that are too few into whatever lies in memory; here they are refused.

    Raises:
        ValueError: the counts cannot be read, or are not those of that many pixels.
    """
    runs = _uncompressed(counts) if isinstance(counts, str | bytes) else _listed(counts)
    if (runs < 0).any() or runs.sum() != height_px * width_px:
        raise ValueError(f"the run lengths do not add up to {width_px} x {height_px} pixels")
    return runs


def area_px(runs: Runs) -> int:
    """How many pixels are 1."""
    return int(runs[1::2].sum())


def unrolled(runs: Runs) -> NDArray[np.bool_]:
    """Bool (W * H,): the pixels of the mask, column by column."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _listed(counts: object) -> Runs:
    if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        raise ValueError("the run lengths are neither a list of whole numbers nor a text")
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError as error:
        raise ValueError("the run lengths are too large") from error


def _uncompressed(text: str | bytes) -> Runs:
    """Run lengths from characters of six bits: five of a number, the lowest first, and one for more
    to come.

    From the fourth on, a number is the difference to the run before the last.
    Source: `rleFrString` in maskApi.c, https://github.com/cocodataset/cocoapi.
    """
    characters = text.encode("utf-8") if isinstance(text, str) else text
    bits = np.frombuffer(characters, np.uint8).astype(np.int64) - _ZERO
    ends = np.flatnonzero(bits & _MORE == 0)
    lengths = np.diff(ends, prepend=-1)
    whole = ends.size > 0 and ends[-1] == bits.size - 1
    if not whole or lengths.max() > _LONGEST or (bits < 0).any() or (bits > 63).any():
        raise ValueError("the compressed run lengths cannot be read")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs: Runs = np.add.reduceat((bits & _VALUE) << shifts, starts)
    runs -= np.where(bits[ends] & _SIGN, 1 << 5 * lengths, 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
