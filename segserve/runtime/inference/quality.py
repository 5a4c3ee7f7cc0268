"""Quality signals of the network's output for one image. A drift shows that the images or the model
have changed.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ..record import BACKGROUND


@dataclass(frozen=True)
class Quality:
    """Means over an image's pixels, on the network's own grid, before `classes` and `threshold` are
    applied.

    Attributes:
        shares: by class id, the fraction of pixels with this top class; they sum to 1.
        confidence: mean top probability, in 0..1.
        entropy: mean entropy of the probabilities, divided by the largest possible entropy: in
            0..1.
    """

    shares: tuple[float, ...]
    confidence: float
    entropy: float

    @property
    def is_background_only(self) -> bool:
        return self.shares[BACKGROUND] == 1


def measure_quality(logits: Tensor) -> Quality:
    """Measures the quality signals of logits, float32 (classes, h, w).

    They are measured before the logits are resized to the image's size. At that size, they would
    cost as much as choosing the labels.
    """
    num_classes = len(logits)
    top, labels = logits.max(dim=0)
    weights = (logits - top).exp_()
    total = weights.sum(dim=0)
    # H = -sum p ln p with p = weights / total and ln p = logits - top - ln total. This avoids a
    # second tensor of logarithms.
    entropy = total.log() + top - weights.mul_(logits).sum(dim=0) / total
    counts = torch.bincount(labels.flatten(), minlength=num_classes)
    means = torch.stack([total.reciprocal().mean(), entropy.mean()])
    *pixels, confidence, mean_entropy = torch.cat(
        [counts, means.to(torch.float64)]
    ).tolist()  # one copy from a GPU
    # With a single class, the entropy is 0 and log(1) cannot be a divisor. Rounding may give a
    # value just below 0.
    largest = log(max(2, num_classes))
    return Quality(
        tuple(count / labels.numel() for count in pixels),
        confidence,
        min(1.0, max(0.0, mean_entropy / largest)),
    )
