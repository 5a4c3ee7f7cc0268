"""A quicker network in a network's place, on the condition that it gives the same logits."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from .device import reason

Made = TypeVar("Made", bound=nn.Module)

# Size of the image on which the two are compared: small, and a multiple of all strides.
TYPICAL_HW = (128, 160)


class StandInError(Exception):
    """No stand-in could be made, or it gives other logits; the message says why, in one line."""


def stand_in(
    network: nn.Module, make: Callable[[nn.Module, Tensor], Made], dtype: torch.dtype, tolerance: float
) -> Made:
    """What `make` makes of a copy of the network, for inference; it may change the copy.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w). It is left as it is.
        make: also gets the image on which the two are compared, float32 (1, 3, H, W).
        dtype: in which the stand-in takes images.
        tolerance: root mean square of the logits' difference, in standard deviations of the logits. That of a wrong
            network is near 1.

    Raises:
        StandInError: `make` failed, for which private operators have reasons with each version of PyTorch, or what it
            made is off by more than the tolerance.
    """
    image = _clouds()
    try:
        with torch.inference_mode():
            made = make(copy.deepcopy(network), image)
            error = _relative_error(made(image.to(dtype)).float(), network(image))
    except Exception as failure:
        raise StandInError(reason(failure)) from failure
    if not error <= tolerance:  # NaN, too
        raise StandInError(f"its logits differ by {error:.2g} standard deviations")
    return made


def _clouds() -> Tensor:
    """(1, 3, H, W) in -1..1, smooth as photographs are: noise would take a network where no image does."""
    noise = torch.randn(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(noise, size=TYPICAL_HW, mode="bilinear").tanh()
    return image.contiguous(memory_format=torch.channels_last)


def _relative_error(logits: Tensor, expected: Tensor) -> float:
    spread = expected.std().clamp(min=torch.finfo(torch.float32).tiny)
    return float((logits - expected).square().mean().sqrt() / spread)
