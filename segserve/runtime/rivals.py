"""Which classes matter to a part of an image: the others need not be brought to the image's size one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A class that is nowhere more probable than this is summed up with others: no probability then changes by more than a
# 250th, and none of the means by more than a ten thousandth (measured on photographs).
_NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Rivals:
    """The logits of the classes that may win in a band of rows, and those of all others as one.

    Attributes:
        logits: float32 (rivals, rows, w); where there are others, (rivals + 1, rows, w), and the last is the logarithm
            of the sum of their exponentials, so that the softmax of a rival is what it is among all classes.
        class_ids: of the rivals, ascending: a tie is won by the lower class, as among all.
    """

    logits: Tensor
    class_ids: Sequence[int]


@dataclass(frozen=True)
class Contest:
    """Logits on a coarse grid, and where on it a class can be on top after a bilinear resize.

    Between four neighbours on the grid, a resized logit is at most their largest, and the winner's at least the largest
    of the classes' smallest. A class that stays below that wins nowhere between them, whatever the size: the winners
    are exactly those among all classes. Of 21 classes, one to three remain in most bands of a usual photograph.

    Attributes:
        logits: float32 (classes, h, w).
        matters: (classes, h): whether a class may win, or is not negligible, between that row and the next.
        temperature: see `choose_labels`.
    """

    logits: Tensor
    matters: NDArray[np.bool_]
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: Tensor, temperature: float = 1.0) -> Self:
        largest, smallest = _among_neighbours(logits, torch.maximum), _among_neighbours(logits, torch.minimum)
        may_win = (largest >= smallest.amax(dim=0)).any(dim=2)
        probable = (_with_next_row((logits / temperature).softmax(dim=0), torch.maximum) > _NEGLIGIBLE).any(dim=2)
        return cls(logits, (may_win | probable).cpu().numpy(), temperature)

    def rivals(self, rows: slice) -> Rivals:
        """Those between the first and the last of these rows of the grid, two at least; the end may pass the grid's."""
        matters = self.matters[:, rows.start : rows.stop - 1].any(axis=1)
        class_ids, others = np.flatnonzero(matters).tolist(), np.flatnonzero(~matters).tolist()
        logits = self.logits[:, rows]
        if not others:
            return Rivals(logits, class_ids)
        others_as_one = (logits[others] / self.temperature).logsumexp(dim=0, keepdim=True) * self.temperature
        return Rivals(torch.cat([logits[class_ids], others_as_one]), class_ids)


def _among_neighbours(logits: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(C, h, w) -> (C, h, w - 1): what `pick` leaves of every two by two; a single column stays."""
    logits = _with_next_row(logits, pick)
    return pick(logits[..., :-1], logits[..., 1:]) if logits.shape[2] > 1 else logits


def _with_next_row(values: Tensor, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(C, h, w) -> (C, h, w): what `pick` leaves of every row and the next; the last row stays."""
    return torch.cat([pick(values[:, :-1], values[:, 1:]), values[:, -1:]], dim=1)
