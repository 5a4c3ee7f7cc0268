"""A data set in PASCAL VOC layout.

DATA/images/NAME.jpg    RGB picture
DATA/labels/NAME.png    8-bit label map of the same size: class ids, 255 for pixels to ignore
DATA/SPLIT.txt          one NAME a line
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import SegserveError
from ..runtime.image import decode_image
from ..runtime.mask import LabelMap

_MAX_PIXELS = 2**24


@dataclass(frozen=True)
class VocFolder:
    """The images and label maps of one split.

    Raises:
        FileNotFoundError: the split list, an image or a label map is missing; the first missing ones are named.
        ValueError: the split is empty.
    """

    folder: Path
    split: str  # a name, for SPLIT.txt in the folder, or the path of such a list

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"split {self.split} names no image")
        missing = [path for name in self.names for path in self.paths(name) if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} files are missing, first: {', '.join(map(str, missing[:5]))}")

    @property
    def names(self) -> list[str]:
        path = Path(self.split) if self.split.endswith(".txt") else self.folder / f"{self.split}.txt"
        return path.read_text(encoding="utf-8").split()

    def paths(self, name: str) -> tuple[Path, Path]:
        """Where the image and the label map of that name lie."""
        return self.folder / "images" / f"{name}.jpg", self.folder / "labels" / f"{name}.png"

    def labels(self, name: str) -> LabelMap:
        """The label map alone."""
        with Image.open(self.paths(name)[1]) as picture:
            return np.array(picture)

    def pair(self, name: str) -> tuple[NDArray[np.uint8], LabelMap]:
        """The image, uint8 (H, W, 3), RGB, upright as when it is served, and its label map, uint8 (H, W).

        Raises:
            ValueError: the image cannot be decoded, or the label map is not 8-bit and of the same size.
        """
        image_path, _ = self.paths(name)
        try:
            image_rgb = decode_image(image_path.read_bytes(), max_pixels=_MAX_PIXELS)
        except SegserveError as error:
            raise ValueError(f"{name}: {error}") from error
        labels = self.labels(name)
        if labels.shape != image_rgb.shape[:2] or labels.dtype != np.uint8:
            raise ValueError(
                f"{name}: expected a label map of uint8 {image_rgb.shape[:2]} (height, width), as the image has, "
                f"got {labels.dtype} {labels.shape}"
            )
        return image_rgb, labels
