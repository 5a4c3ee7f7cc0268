"""The batches of training: random crops, and the images of each step."""

from collections.abc import Iterator
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...recipe import Recipe
from ...runtime.record import InputRule
from ..data import IGNORED, LabelledImages


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops: uint8 image (3, crop, crop), RGB, and uint8 label map (crop, crop).

    An item depends on its key (index, seed) alone, so that any step of a run can be repeated.
    """

    def __init__(self, data: LabelledImages, recipe: Recipe, rule: InputRule) -> None:
        self._data, self._names = data, data.names
        mean_rgb = [round(255 * mean) for mean in rule.mean]
        outside = {tv_tensors.Image: mean_rgb, tv_tensors.Mask: IGNORED}
        self._augment = v2.Compose(
            [
                v2.ScaleJitter((recipe.image_px, recipe.image_px), scale_range=recipe.scales),
                v2.RandomCrop(recipe.crop_px, pad_if_needed=True, fill=outside),
                v2.RandomHorizontalFlip(),
            ]
        )
        strength = recipe.color_jitter
        self._recolor = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = key
        image_rgb, labels = self._data.pair(self._names[index])
        torch.manual_seed(seed)
        crop, crop_labels = self._augment(
            tv_tensors.Image(image_rgb.transpose(2, 0, 1).copy()), tv_tensors.Mask(labels)
        )
        return self._recolor(crop.as_subclass(Tensor)), crop_labels.as_subclass(Tensor)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (index, seed) pairs of every step from `first_step` on.

    An epoch visits every image once, shuffled. The images of a step depend on (seed, step) alone,
    so a resumed run continues with the same batches. Each of several processes gets its share of
    every batch.
    """

    def __init__(
        self, num_images: int, recipe: Recipe, first_step: int, *, rank: int = 0, processes: int = 1
    ) -> None:
        self._num_images, self._recipe, self._first_step = num_images, recipe, first_step
        self._share = slice(rank, None, processes)

    def __len__(self) -> int:
        return self._recipe.steps - self._first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, order = self._recipe.batch_size, self._order()
        for step in range(self._first_step, self._recipe.steps):
            positions = range(step * size, (step + 1) * size)[self._share]
            yield [(int(order[position]), self._seed(position)) for position in positions]

    def _order(self) -> NDArray[np.int64]:
        """The image index of every position of the whole run, epoch by epoch."""
        positions = self._recipe.steps * self._recipe.batch_size
        seeds = [(self._recipe.seed, epoch) for epoch in range(ceil(positions / self._num_images))]
        return np.concatenate(
            [np.random.default_rng(seed).permutation(self._num_images) for seed in seeds]
        )

    def _seed(self, position: int) -> int:
        return int(np.random.SeedSequence((self._recipe.seed, position)).generate_state(1)[0])
