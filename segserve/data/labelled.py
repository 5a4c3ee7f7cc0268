"""What training and evaluation need of a data set, whatever its layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.mask import LabelMap

IGNORED = 255
"""The label of pixels that belong to no class: training and evaluation leave them out."""


class LabelledImages(Protocol):
    """One split of a data set."""

    @property
    def names(self) -> Sequence[str]:
        """One name an image, in the order of the split."""

    def paths(self, name: str) -> tuple[Path, Path]:
        """The image's file and that of its labels."""

    def labels(self, name: str) -> LabelMap:
        """The label map alone, uint8 (H, W)."""

    def pair(self, name: str) -> tuple[NDArray[np.uint8], LabelMap]:
        """The image, uint8 (H, W, 3), RGB, upright as when it is served, and its label map, uint8 (H, W)."""
