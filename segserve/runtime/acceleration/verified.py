"""Verified optimisation: a faster network replaces one that gives the same logits. OpenVINO
computes it on a CPU.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.profiler import record_function

from ..errors import is_out_of_memory
from ..inference.arrays import relative_error
from .openvino_model import INT8_TOLERANCE, OpenVinoModel, OpenVinoPrecision, Ranges, quantize

logger = logging.getLogger(__name__)

# From CUDA, its libraries and its driver. `HIP` is AMD's, which PyTorch uses under CUDA's name.
_FAILED = ("CUDA", "cuDNN", "CUDNN_", "CUBLAS_", "NVIDIA", "HIP error", "unable to find an engine")

_PRECISIONS: dict[torch.dtype, OpenVinoPrecision] = {torch.float32: "f32", torch.bfloat16: "bf16"}
# RMS difference of the logits, in standard deviations of the logits. A wrong network has about 1.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
_TRACED_HW = (64, 96)  # any size: the compiled network takes all sizes

# The sizes of the images for the comparison: small, and multiples of all strides. An optimisation
# that works at one size only fails at the other.
_COMPARED_HW = ((128, 160), (96, 64))

CPU = torch.device("cpu")

Made = TypeVar("Made", bound=nn.Module)


def is_device_failure(error: BaseException) -> bool:
    """Whether a GPU is missing or broken. A full GPU memory is not a failure."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in _FAILED)


def reason(error: BaseException) -> str:
    """Formats an error as part of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class OptimizationError(Exception):
    """The optimisation failed, or gives other logits. The message is one line."""


def verified(
    network: nn.Module,
    make: Callable[[nn.Module, Tensor], Made],
    dtype: torch.dtype,
    tolerance: float,
    device: torch.device = CPU,
) -> Made:
    """Optimises a copy of the network with `make`, for inference, and compares the logits of both
    on images of two sizes.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w). Is not
            changed.
        make: receives the copy, which it may change, and an image, float32 (1, 3, H, W).
        dtype: of the images that the optimised network takes, on `device`.
        tolerance: largest RMS difference of the logits, in standard deviations of the logits.

    Raises:
        OptimizationError: `make` failed, or the logits differ by more than the tolerance.
    """
    images = [_clouds(size_hw) for size_hw in _COMPARED_HW]
    copied = copy.deepcopy(network)  # inference tensors could not be moved later
    try:
        with torch.inference_mode():
            made = make(copied, images[0])
            errors = [
                relative_error(made(image.to(device, dtype)).cpu().float(), network(image))
                for image in images
            ]
    except Exception as failure:
        raise OptimizationError(reason(failure)) from failure
    for error in errors:
        if not error <= tolerance:  # also if NaN
            raise OptimizationError(f"its logits differ by {error:.2g} standard deviations")
    return made


def _clouds(size_hw: tuple[int, int]) -> Tensor:
    """An image (1, 3, H, W) in -1..1, smooth: noise causes activations that no photo causes."""
    noise = torch.randn(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(noise, size=size_hw, mode="bilinear").tanh()
    return image.contiguous(memory_format=torch.channels_last)


class OpenVinoNetwork(nn.Module):
    """A network compiled by OpenVINO for the processor, to compute in `dtype`, or with `ranges` its
    large convolutions in int8.

    Shape: (N, 3, H, W) -> (N, classes, h, w), float32.

    PyTorch keeps the weights that were traced until the process ends, 4 bytes each. A call uses as
    many threads as `torch.set_num_threads` gave the calling thread.

    Raises:
        ValueError: an operation depends on the size of the image: it would be compiled for one
            size. Or int8 is impossible, see `quantize`. OpenVINO raises errors of other types.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype, ranges: Ranges | None = None
    ) -> None:
        super().__init__()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        image = torch.zeros(1, 3, *_TRACED_HW)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            traced = torch.jit.trace(network, image, check_trace=False)  # type: ignore[no-untyped-call]
        if any(issubclass(warning.category, torch.jit._trace.TracerWarning) for warning in caught):
            raise ValueError("an operation depends on the size of the image")
        # The front end itself, as `openvino.convert_model` reports its use to a server.
        front_end = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=(image,))  # must outlive the load
        model = front_end.convert(front_end.load(decoder))
        model.reshape([-1, 3, -1, -1])
        if ranges is not None:
            quantize(model, ranges)
        self.precision = str(dtype).removeprefix("torch.") if ranges is None else "int8"
        self._model = OpenVinoModel(
            model, precision=_PRECISIONS[dtype], threads=torch.get_num_threads()
        )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """As `OpenVinoModel.check_shape`."""
        self._model.check_shape(shape)

    def forward(self, x: Tensor) -> Tensor:
        with record_function("OpenVINO network"):  # one operator in a profile
            inputs = x.float().contiguous().numpy()
            return torch.from_numpy(self._model.infer(inputs, torch.get_num_threads()))


def openvino_network(
    network: nn.Module, dtype: torch.dtype, ranges: Ranges | None = None
) -> OpenVinoNetwork:
    """A verified `OpenVinoNetwork`. Raises as `verified`."""
    tolerance = _TOLERANCES[dtype] if ranges is None else INT8_TOLERANCE
    return verified(
        network, lambda copied, _: OpenVinoNetwork(copied, dtype, ranges), dtype, tolerance
    )


def check_shape(network: nn.Module, optimized: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises an error if the network, or what optimises it, cannot compute images of this shape.

    OpenVINO has limits of its own. The network itself is on the CPU, because an error of a GPU
    would not say anything about the shape.
    """
    network(torch.zeros(shape))
    if isinstance(optimized, OpenVinoNetwork):
        optimized.check_shape(shape)


def cpu_network(network: nn.Module, dtype: torch.dtype, ranges: Ranges | None = None) -> nn.Module:
    """The network compiled by OpenVINO, in int8 if there are ranges. Without int8 or OpenVINO where
    they fail, with a warning each. See `verified` for `network`; `dtype` is float32 or bfloat16.
    """
    if ranges:
        try:
            return openvino_network(network, dtype, ranges)
        except OptimizationError as error:
            logger.warning("the network does not compute in int8: %s", error)
    try:
        return openvino_network(network, dtype)
    except OptimizationError as error:
        logger.warning("the network runs without OpenVINO, which is slower: %s", error)
        return network
