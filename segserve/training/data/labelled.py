"""What training and evaluation need of a data set, whatever its layout."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.encode.mask import LabelMap
from .errors import DataError
from .files import image_size, read_image

IGNORED = 255
"""The label of pixels that belong to no class: training and evaluation leave them out."""


class LabelledImages(ABC):
    """One split of a data set. Reading is safe from several threads and processes at once.

    Attributes:
        names: one an image, in the order of the split.
        source: the file that the names come from.
    """

    names: Sequence[str]
    source: Path

    @abstractmethod
    def paths(self, name: str) -> tuple[Path, Path]:
        """The image's file and that of its labels; they may be missing."""

    @abstractmethod
    def labels(self, name: str) -> LabelMap:
        """uint8 (H, W): the class id of every pixel, 255 for pixels to ignore.

        Raises:
            DataError: the labels are missing, or cannot be read.
        """

    def problems(self) -> Sequence[str]:
        """What is wrong with the split as a whole, beyond what reading its images and labels
        shows.
        """
        return ()

    def image(self, name: str) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), RGB, upright as when it is served.

        Raises:
            DataError: the image is missing, or cannot be decoded whole.
        """
        return read_image(self.paths(name)[0])

    def image_size(self, name: str) -> tuple[int, int]:
        """(height, width) of the image; errors as in `image`, for less work."""
        return image_size(self.paths(name)[0])

    def pair(self, name: str) -> tuple[NDArray[np.uint8], LabelMap]:
        """The image and its label map.

        Raises:
            DataError: as `image` and `labels` do, or the two differ in size.
        """
        image_rgb, labels = self.image(name), self.labels(name)
        self.require_same_size(name, image_rgb.shape[:2], labels)
        return image_rgb, labels

    def require_same_size(self, name: str, image_hw: tuple[int, ...], labels: LabelMap) -> None:
        """Raises DataError where the label map, uint8 (H, W), is not of the image's (height,
        width).
        """
        if labels.shape == image_hw:
            return
        image_path, label_path = self.paths(name)
        raise DataError(
            f"{label_path}: the label map has {_wh(labels.shape)} pixels, but {image_path} has "
            f"{_wh(image_hw)}"
        )


def _wh(shape_hw: tuple[int, ...]) -> str:
    height_px, width_px = shape_hw
    return f"{width_px} x {height_px}"
