"""Rare classes: which images hold them, and how much more often those images are seen."""

import numpy as np
from numpy.typing import NDArray


def rare_classes(presence: NDArray[np.bool_], threshold: float) -> list[int]:
    """The classes, background aside, that some images hold, but a smaller share of them than the
    threshold.
    """
    share = presence.mean(axis=0)
    return [class_id for class_id in range(1, len(share)) if 0 < share[class_id] < threshold]


def repeat_factors(presence: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """How often a pass shows each image, float64 (images,), at least 1: sqrt(threshold / share) of
    its rarest class.

    Source: Gupta et al., LVIS, arXiv:1908.03195, section 3.2.
    """
    share = presence.mean(axis=0)
    by_class = np.sqrt(threshold / np.maximum(share, np.finfo(np.float64).tiny))
    factors: NDArray[np.float64] = np.maximum(1.0, np.where(presence, by_class, 0.0).max(axis=1))
    return factors
