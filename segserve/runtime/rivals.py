"""Which classes matter to an image: the others need not be brought to the image's size one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# A class that is nowhere more probable than this is summed up with others: no probability then changes by more than a
# 250th, and none of the means by more than a ten thousandth (measured on photographs).
_NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Rivals:
    """The logits of the classes that may win somewhere, and those of all others as one.

    Attributes:
        logits: float32 (rivals, h, w); where there are others, (rivals + 1, h, w), and the last is the logarithm of the
            sum of their exponentials, so that the softmax of a rival is what it is among all classes.
        class_ids: of the rivals, ascending: a tie is won by the lower class, as among all.
    """

    logits: Tensor
    class_ids: Sequence[int]
    num_classes: int

    def turned(self) -> Self:
        """Rows for columns."""
        return type(self)(self.logits.mT, self.class_ids, self.num_classes)


def find_rivals(logits: Tensor) -> Rivals:
    """The classes that a bilinear resize of `logits`, float32 (classes, h, w), can leave on top of a pixel.

    Between four neighbours on the grid, a resized logit is at most their largest, and the winner's at least the largest
    of the classes' smallest. A class that stays below that between all neighbours wins nowhere, whatever the size: the
    winners are exactly those among all classes. Of 21 classes three or four remain in a usual photograph.
    """
    largest, smallest = _among_neighbours(logits, torch.maximum), _among_neighbours(logits, torch.minimum)
    may_win = (largest >= smallest.amax(dim=0)).flatten(1).any(dim=1)
    matters = may_win | (logits.softmax(dim=0).flatten(1).amax(dim=1) > _NEGLIGIBLE)
    class_ids = matters.nonzero().flatten().tolist()
    if len(class_ids) == len(logits):
        return Rivals(logits, class_ids, len(logits))
    others = logits[~matters].logsumexp(dim=0, keepdim=True)
    return Rivals(torch.cat([logits[matters], others]), class_ids, len(logits))


def _among_neighbours(logits: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(C, h, w) -> (C, h - 1, w - 1): what `pick` leaves of every two by two; a side of 1 stays."""
    for side in (1, 2):
        if (pairs := logits.shape[side] - 1) > 0:
            logits = pick(logits.narrow(side, 0, pairs), logits.narrow(side, 1, pairs))
    return logits
