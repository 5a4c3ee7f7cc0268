"""A data set in PASCAL VOC layout, and the random crops that training sees.

DATA/images/NAME.jpg    RGB picture
DATA/labels/NAME.png    8-bit label map of the same size: class ids, 255 for pixels to ignore
DATA/SPLIT.txt          one NAME a line
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..runtime.errors import SegserveError
from ..runtime.image import decode_image
from ..runtime.mask import LabelMap
from ..runtime.record import InputRule
from .recipe import Recipe

IGNORED = 255
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

    def pair(self, name: str) -> tuple[NDArray[np.uint8], LabelMap]:
        """The image, uint8 (H, W, 3), RGB, upright as when it is served, and its label map, uint8 (H, W).

        Raises:
            ValueError: the image cannot be decoded, or the label map is not 8-bit and of the same size.
        """
        image_path, label_path = self.paths(name)
        try:
            image_rgb = decode_image(image_path.read_bytes(), max_pixels=_MAX_PIXELS)
        except SegserveError as error:
            raise ValueError(f"{name}: {error}") from error
        with Image.open(label_path) as picture:
            labels = np.array(picture)
        if labels.shape != image_rgb.shape[:2] or labels.dtype != np.uint8:
            raise ValueError(
                f"{name}: expected a label map of uint8 {image_rgb.shape[:2]} (height, width), as the image has, "
                f"got {labels.dtype} {labels.shape}"
            )
        return image_rgb, labels


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops: uint8 image (3, crop, crop), RGB, and uint8 label map (crop, crop).

    An item is asked for by (index, seed) and depends on nothing else, so that any step of a run can be made again.
    """

    def __init__(self, data: VocFolder, recipe: Recipe, rule: InputRule) -> None:
        self._data, self._names = data, data.names
        outside = {tv_tensors.Image: [round(255 * mean) for mean in rule.mean], tv_tensors.Mask: IGNORED}
        self._augment = v2.Compose(
            [
                v2.ScaleJitter(target_size=(recipe.image_px, recipe.image_px), scale_range=recipe.scales),
                v2.RandomCrop(recipe.crop_px, pad_if_needed=True, fill=outside),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = key
        image_rgb, labels = self._data.pair(self._names[index])
        torch.manual_seed(seed)
        crop, crop_labels = self._augment(
            tv_tensors.Image(image_rgb.transpose(2, 0, 1).copy()), tv_tensors.Mask(labels)
        )
        return crop.as_subclass(Tensor), crop_labels.as_subclass(Tensor)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (index, seed) pairs of every step from `first_step` on: each pass visits every image once, shuffled.

    Which images a step sees follows from (seed, step) alone, so a resumed run goes on with the very same batches.
    """

    def __init__(self, images: int, recipe: Recipe, first_step: int) -> None:
        self._images, self._recipe, self._first_step = images, recipe, first_step

    def __len__(self) -> int:
        return self._recipe.steps - self._first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, order = self._recipe.batch_size, self._order()
        for step in range(self._first_step, self._recipe.steps):
            places = range(step * size, (step + 1) * size)
            yield [(int(order[place]), self._seed(place)) for place in places]

    def _order(self) -> NDArray[np.int64]:
        """The index of every place of the whole run: one permutation after the other."""
        passes = -(-self._recipe.steps * self._recipe.batch_size // self._images)
        shuffled = [np.random.default_rng((self._recipe.seed, number)) for number in range(passes)]
        return np.concatenate([generator.permutation(self._images) for generator in shuffled])

    def _seed(self, place: int) -> int:
        return int(np.random.SeedSequence((self._recipe.seed, place)).generate_state(1)[0])
