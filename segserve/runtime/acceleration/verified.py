"""Verified optimisation: a faster network replaces one that gives the same logits."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..errors import is_out_of_memory
from ..inference.arrays import relative_error

# From CUDA, its libraries and its driver. `HIP` is AMD's, which PyTorch uses under CUDA's name.
_FAILED = ("CUDA", "cuDNN", "CUDNN_", "CUBLAS_", "NVIDIA", "HIP error", "unable to find an engine")


def is_device_failure(error: BaseException) -> bool:
    """Whether a GPU is missing or broken. A full GPU memory is not a failure."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in _FAILED)


def reason(error: BaseException) -> str:
    """Formats an error as part of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


Made = TypeVar("Made", bound=nn.Module)

# The sizes of the images for the comparison: small, and multiples of all strides. An optimisation
# that works at one size only fails at the other.
TYPICAL_HW = (128, 160)
_COMPARED_HW = (TYPICAL_HW, (96, 64))


class OptimizationError(Exception):
    """The optimisation failed, or gives other logits. The message is one line."""


def verified(
    network: nn.Module,
    make: Callable[[nn.Module, Tensor], Made],
    dtype: torch.dtype,
    tolerance: float,
) -> Made:
    """Optimises a copy of the network with `make`, for inference, and compares the logits of both
    on images of two sizes.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w). Is not
            changed.
        make: receives the copy, which it may change, and an image, float32 (1, 3, H, W).
        dtype: of the images that the optimised network takes.
        tolerance: largest RMS difference of the logits, in standard deviations of the logits. A
            wrong network has about 1.

    Raises:
        OptimizationError: `make` failed, which may happen with any version of PyTorch because it
            uses private operators. Or the logits differ by more than the tolerance.
    """
    images = [_clouds(size_hw) for size_hw in _COMPARED_HW]
    copied = copy.deepcopy(network)  # inference tensors could not be moved later
    try:
        with torch.inference_mode():
            made = make(copied, images[0])
            errors = [
                relative_error(made(image.to(dtype)).float(), network(image)) for image in images
            ]
    except Exception as failure:
        raise OptimizationError(reason(failure)) from failure
    for error in errors:
        if not error <= tolerance:  # also if NaN
            raise OptimizationError(f"its logits differ by {error:.2g} standard deviations")
    return made


def _clouds(size_hw: tuple[int, int]) -> Tensor:
    """An image (1, 3, H, W) in -1..1, smooth like a photograph.

    Noise would cause activations that no image causes.
    """
    noise = torch.randn(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(noise, size=size_hw, mode="bilinear").tanh()
    return image.contiguous(memory_format=torch.channels_last)
