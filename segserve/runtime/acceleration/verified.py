"""Verified optimisation: replaces a network with a faster one that gives the same logits."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from .device import reason

Made = TypeVar("Made", bound=nn.Module)

# The size of the image for the comparison: small, and a multiple of all strides.
TYPICAL_HW = (128, 160)


class OptimizationError(Exception):
    """The optimisation failed, or it gives other logits. The message gives the reason in one
    line.
    """


def verified(
    network: nn.Module,
    make: Callable[[nn.Module, Tensor], Made],
    dtype: torch.dtype,
    tolerance: float,
) -> Made:
    """Optimises a copy of the network with `make`, for inference, and compares the logits of both.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w). Is not
            changed.
        make: receives the copy, which it may change, and the image for the comparison, float32 (1,
            3, H, W).
        dtype: of the images that the optimised network takes.
        tolerance: largest RMS difference of the logits, in standard deviations of the logits. A
            wrong network has about 1.

    Raises:
        OptimizationError: `make` failed, which may happen with any version of PyTorch because it
            uses private operators. Or the logits differ by more than the tolerance.
    """
    image = _clouds()
    try:
        with torch.inference_mode():
            made = make(copy.deepcopy(network), image)
            error = _relative_error(made(image.to(dtype)).float(), network(image))
    except Exception as failure:
        raise OptimizationError(reason(failure)) from failure
    if not error <= tolerance:  # also if NaN
        raise OptimizationError(f"its logits differ by {error:.2g} standard deviations")
    return made


def _clouds() -> Tensor:
    """An image (1, 3, H, W) in -1..1, smooth like a photograph.

    Noise would cause activations that no image causes.
    """
    noise = torch.randn(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(noise, size=TYPICAL_HW, mode="bilinear").tanh()
    return image.contiguous(memory_format=torch.channels_last)


def _relative_error(logits: Tensor, expected: Tensor) -> float:
    spread = expected.std().clamp(min=torch.finfo(torch.float32).tiny)
    return float((logits - expected).square().mean().sqrt() / spread)
