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
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..runtime.record import InputRule
from .recipe import Recipe

IGNORED = 255


@dataclass(frozen=True)
class VocFolder:
    """The images and label maps of one split.

    Raises:
        FileNotFoundError: the split list, an image or a label map is missing; the first missing ones are named.
        ValueError: the split is empty.
    """

    folder: Path
    split: str

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"{self.split}.txt names no image")
        missing = [path for name in self.names for path in self.paths(name) if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} files are missing, first: {', '.join(map(str, missing[:5]))}")

    @property
    def names(self) -> list[str]:
        return (self.folder / f"{self.split}.txt").read_text(encoding="utf-8").split()

    def paths(self, name: str) -> tuple[Path, Path]:
        """Where the image and the label map of that name lie."""
        return self.folder / "images" / f"{name}.jpg", self.folder / "labels" / f"{name}.png"


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops: uint8 image (3, crop, crop), RGB, and uint8 label map (crop, crop).

    An item is asked for by (index, seed) and depends on nothing else, so that any step of a run can be made again.
    """

    def __init__(self, data: VocFolder, recipe: Recipe, rule: InputRule) -> None:
        self._paths = [data.paths(name) for name in data.names]
        outside = {tv_tensors.Image: [round(255 * mean) for mean in rule.mean], tv_tensors.Mask: IGNORED}
        self._augment = v2.Compose(
            [
                v2.ScaleJitter(target_size=(recipe.image_px, recipe.image_px), scale_range=recipe.scales),
                v2.RandomCrop(recipe.crop_px, pad_if_needed=True, fill=outside),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = key
        image_path, label_path = self._paths[index]
        with Image.open(image_path) as picture, Image.open(label_path) as labels:
            image = tv_tensors.Image(np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy())
            mask = tv_tensors.Mask(np.asarray(labels).copy())
        torch.manual_seed(seed)
        crop, crop_labels = self._augment(image, mask)
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
        size = self._recipe.batch_size
        for step in range(self._first_step, self._recipe.steps):
            yield [(self._index(place), self._seed(place)) for place in range(step * size, (step + 1) * size)]

    def _index(self, place: int) -> int:
        passes, offset = divmod(place, self._images)
        if getattr(self, "_pass", None) != passes:
            self._pass = passes
            self._order = np.random.default_rng((self._recipe.seed, passes)).permutation(self._images)
        return int(self._order[offset])

    def _seed(self, place: int) -> int:
        return int(np.random.SeedSequence((self._recipe.seed, place)).generate_state(1)[0])
