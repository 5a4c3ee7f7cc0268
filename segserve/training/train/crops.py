"""The random crops that training sees, and which images make up the batch of each step."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...runtime.record import InputRule
from ..data import IGNORED, LabelledImages
from .recipe import Recipe

Paste = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # crop and label map, as TrainingCrops gives them


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops: uint8 image (3, crop, crop), RGB, and uint8 label map (crop, crop).

    An item is asked for by (index, seed) and depends on nothing else, so that any step of a run can
    be made again.
    """

    def __init__(
        self, data: LabelledImages, recipe: Recipe, rule: InputRule, paste: Paste | None = None
    ) -> None:
        self._data, self._names, self._paste = data, data.names, paste
        outside = {
            tv_tensors.Image: [round(255 * mean) for mean in rule.mean],
            tv_tensors.Mask: IGNORED,
        }
        self._augment = v2.Compose(
            [
                v2.ScaleJitter(
                    target_size=(recipe.image_px, recipe.image_px), scale_range=recipe.scales
                ),
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
        crop, crop_labels = crop.as_subclass(Tensor), crop_labels.as_subclass(Tensor)
        if self._paste:
            crop, crop_labels = self._paste(crop, crop_labels)
        return self._recolor(crop), crop_labels


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (index, seed) pairs of every step from `first_step` on.

    Each pass visits every image as often as `repeats`, float64 (images,), says, shuffled: 1.3 is
    once, and a second time in three passes of ten. Which images a step sees follows from (seed,
    step) alone, so a resumed run goes on with the very same batches. Of several processes, each
    gets its share of every batch.
    """

    def __init__(
        self,
        repeats: NDArray[np.float64],
        recipe: Recipe,
        first_step: int,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._repeats, self._recipe, self._first_step = repeats, recipe, first_step
        self._share = slice(rank, None, processes)

    def __len__(self) -> int:
        return self._recipe.steps - self._first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, order = self._recipe.batch_size, self._order()
        for step in range(self._first_step, self._recipe.steps):
            places = range(step * size, (step + 1) * size)
            yield [(int(order[place]), self._seed(place)) for place in places[self._share]]

    def _order(self) -> NDArray[np.int64]:
        """The index of every place of the whole run: one pass after the other."""
        places = self._recipe.steps * self._recipe.batch_size
        passes = -(-places // int(np.floor(self._repeats).sum()))
        return np.concatenate([self._pass(number) for number in range(passes)])

    def _pass(self, number: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self._recipe.seed, number))
        whole = np.floor(self._repeats)
        times = whole + (generator.random(len(whole)) < self._repeats - whole)
        return generator.permutation(np.repeat(np.arange(len(whole)), times.astype(np.int64)))

    def _seed(self, place: int) -> int:
        return int(np.random.SeedSequence((self._recipe.seed, place)).generate_state(1)[0])
