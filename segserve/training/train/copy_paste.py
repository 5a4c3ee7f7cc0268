"""Pastes objects of rare classes into crops (after Ghiasi et al., Simple Copy-Paste,
arXiv:2012.07177).

Without instance masks, an object is all that one image shows of one class.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..data import LabelledImages

_SHARE_OF_CROP = (0.3, 1.0)  # the pasted object's longer side, in crops


class ObjectPaste:
    """Draws from torch's global generator.

    Args:
        presence: bool (images, classes), which image of `data` holds which class.
        classes: ids of the classes to paste; each is drawn as often as any other.
        probability: of a crop to get an object.
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
        """Crop, uint8 (3, S, S), and label map, uint8 (S, S), with an object in them, or as they
        are.
        """
        if not self._sources or torch.rand(()) >= self._probability:
            return crop, labels
        class_id, images = self._sources[_drawn(len(self._sources))]
        image_rgb, object_labels = self._data.pair(self._names[int(images[_drawn(len(images))])])
        pixels, mask = _cut_out(
            torch.from_numpy(image_rgb).permute(2, 0, 1),
            torch.from_numpy(object_labels) == class_id,
        )
        return _pasted(crop, labels, *_resized(pixels, mask, crop.shape[-1]), class_id)


def _drawn(count: int) -> int:
    return int(torch.randint(count, ()))


def _cut_out(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Image (3, h, w) and mask (h, w) of the smallest box that holds the mask."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return image[:, *box], mask[box]


def _resized(pixels: Tensor, mask: Tensor, crop_px: int) -> tuple[Tensor, Tensor]:
    """The object at a random size and, half the time, mirrored."""
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
    top, left = _drawn(crop.shape[-2] - height + 1), _drawn(crop.shape[-1] - width + 1)
    window = slice(top, top + height), slice(left, left + width)
    crop, labels = crop.clone(), labels.clone()
    crop[:, *window] = torch.where(mask, pixels, crop[:, *window])
    labels[window] = torch.where(mask, class_id, labels[window].long()).to(torch.uint8)
    return crop, labels
