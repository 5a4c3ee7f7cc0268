"""What the network makes of an image as a whole: figures whose drift shows that images, or the model, have changed."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from .record import BACKGROUND


@dataclass(frozen=True)
class Quality:
    """Means over an image's pixels, on the network's own grid and before `classes` and `threshold` act.

    Attributes:
        shares: by class id, the share of pixels with that class on top; they sum to 1.
        confidence: mean top probability, in 0..1.
        entropy: mean entropy of the probabilities, as a share of that of a network that has no idea: in 0..1.
    """

    shares: tuple[float, ...]
    confidence: float
    entropy: float

    @property
    def is_background_only(self) -> bool:
        return self.shares[BACKGROUND] == 1


def measure_quality(logits: Tensor) -> Quality:
    """The quality signals of logits, float32 (classes, h, w).

    Measured before the logits are brought to the image's size, where it would cost as much as choosing the labels.
    """
    num_classes = len(logits)
    top, labels = logits.max(dim=0)
    weights = (logits - top).exp_()
    total = weights.sum(dim=0)
    # H = -sum p ln p with p = weights / total and ln p = logits - top - ln total, in place of a second tensor of logs.
    entropy = total.log() + top - weights.mul_(logits).sum(dim=0) / total
    counts = torch.bincount(labels.flatten(), minlength=num_classes)
    means = torch.stack([total.reciprocal().mean(), entropy.mean()])
    *pixels, confidence, mean_entropy = torch.cat([counts, means.to(torch.float64)]).tolist()  # one trip from a GPU
    # Of a single class there is nothing to be unsure about; rounding may leave a certain network just below 0.
    largest = log(max(2, num_classes))
    return Quality(
        tuple(count / labels.numel() for count in pixels), confidence, min(1.0, max(0.0, mean_entropy / largest))
    )
