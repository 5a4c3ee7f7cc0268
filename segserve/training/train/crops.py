"""The batches of training: random crops, the images of each step, the balance of rare classes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...recipe import Recipe
from ...runtime.record import InputRule
from ..data import IGNORED, LabelledImages

_SHARE_OF_CROP = (0.3, 1.0)  # the longer side of a pasted object, in crops


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops: uint8 image (3, crop, crop), RGB, and uint8 label map (crop, crop).

    An item depends on its key (index, seed) alone, so that any step of a run can be repeated.
    """

    def __init__(
        self,
        data: LabelledImages,
        recipe: Recipe,
        rule: InputRule,
        paste: "ObjectPaste | None" = None,
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

    An epoch visits every image as often as `repeats`, float64 (images,), shuffled: 1.3 means once,
    and a second time in 3 of 10 epochs. The images of a step depend on (seed, step) alone, so a
    resumed run continues with the same batches. Each of several processes gets its share of every
    batch.
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
            positions = range(step * size, (step + 1) * size)[self._share]
            yield [(int(order[position]), self._seed(position)) for position in positions]

    def _order(self) -> NDArray[np.int64]:
        """The image index of every position of the whole run, epoch by epoch."""
        positions = self._recipe.steps * self._recipe.batch_size
        epochs = -(-positions // int(np.floor(self._repeats).sum()))
        return np.concatenate([self._epoch(number) for number in range(epochs)])

    def _epoch(self, number: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self._recipe.seed, number))
        whole = np.floor(self._repeats)
        times = whole + (generator.random(len(whole)) < self._repeats - whole)
        return generator.permutation(np.repeat(np.arange(len(whole)), times.astype(np.int64)))

    def _seed(self, position: int) -> int:
        return int(np.random.SeedSequence((self._recipe.seed, position)).generate_state(1)[0])


def rare_classes(presence: NDArray[np.bool_], threshold: float) -> list[int]:
    """The foreground classes that occur in some images, but in a smaller share than `threshold`.

    Args:
        presence: bool (images, classes): which image holds which class.
    """
    share = presence.mean(axis=0)
    return [class_id for class_id in range(1, len(share)) if 0 < share[class_id] < threshold]


def repeat_factors(presence: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """How often an epoch visits each image, float64 (images,), at least 1.

    This is sqrt(threshold / share) of the image's rarest class.
    Source: Gupta et al., LVIS, arXiv:1908.03195, section 3.2.
    """
    share = presence.mean(axis=0)
    by_class = np.sqrt(threshold / np.maximum(share, np.finfo(np.float64).tiny))
    factors: NDArray[np.float64] = np.maximum(1.0, np.where(presence, by_class, 0.0).max(axis=1))
    return factors


class ObjectPaste:
    """Pastes objects of rare classes into crops, with random numbers of torch's global generator.

    After Ghiasi et al., Simple Copy-Paste, arXiv:2012.07177. There are no instance masks: an object
    is all pixels of one class in one image.

    Args:
        presence: bool (images, classes): which image of `data` holds which class.
        classes: ids of the classes to paste, all with the same probability.
        probability: the probability that a crop gets an object.
    """

    def __init__(
        self,
        data: LabelledImages,
        presence: NDArray[np.bool_],
        classes: Sequence[int],
        probability: float,
    ) -> None:
        self._data, self._names, self._probability = data, data.names, probability
        self._sources = [(class_id, np.flatnonzero(presence[:, class_id])) for class_id in classes]

    def __call__(self, crop: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns crop, uint8 (3, S, S), and label map, uint8 (S, S), with or without an object."""
        if not self._sources or torch.rand(()) >= self._probability:
            return crop, labels
        class_id, images = self._sources[_random_below(len(self._sources))]
        index = int(images[_random_below(len(images))])
        image_rgb, object_labels = self._data.pair(self._names[index])
        pixels, mask = _cut_out(
            torch.from_numpy(image_rgb).permute(2, 0, 1),
            torch.from_numpy(object_labels) == class_id,
        )
        return _pasted(crop, labels, *_resized(pixels, mask, crop.shape[-1]), class_id)


def _random_below(count: int) -> int:
    return int(torch.randint(count, ()))


def _cut_out(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Image (3, h, w) and mask (h, w) of the mask's bounding box."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return image[:, *box], mask[box]


def _resized(pixels: Tensor, mask: Tensor, crop_px: int) -> tuple[Tensor, Tensor]:
    """The object at a random size, mirrored with probability 0.5."""
    low, high = _SHARE_OF_CROP
    longer_px = crop_px * (low + (high - low) * float(torch.rand(())))
    size = [max(1, round(side * longer_px / max(mask.shape))) for side in mask.shape]
    pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    mask = F.interpolate(mask[None, None].to(torch.uint8), size=size, mode="nearest-exact")[
        0, 0
    ].bool()
    return (pixels.flip(-1), mask.flip(-1)) if torch.rand(()) < 0.5 else (pixels, mask)


def _pasted(
    crop: Tensor, labels: Tensor, pixels: Tensor, mask: Tensor, class_id: int
) -> tuple[Tensor, Tensor]:
    height, width = mask.shape
    top = _random_below(crop.shape[-2] - height + 1)
    left = _random_below(crop.shape[-1] - width + 1)
    window = slice(top, top + height), slice(left, left + width)
    crop, labels = crop.clone(), labels.clone()
    crop[:, *window] = torch.where(mask, pixels, crop[:, *window])
    labels[window] = torch.where(mask, class_id, labels[window].long()).to(torch.uint8)
    return crop, labels
