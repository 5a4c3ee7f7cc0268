"""Networks of PyTorch on a CPU: OpenVINO computes them, see `openvino_model`.

Where OpenVINO is not installed or does not support a network, its norms and activations become part
of its convolutions, which oneDNN computes.
"""

import logging
import warnings
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..network.ranges import Ranges
from ..network.weights import SegmentationNetwork
from .fusion import Activation, Geometry, fuse
from .int8 import INT8_TOLERANCE, quantize
from .openvino_model import OpenVinoModel, OpenVinoPrecision
from .verified import OptimizationError, verified

logger = logging.getLogger(__name__)

_PRECISIONS: dict[torch.dtype, OpenVinoPrecision] = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TRACED_HW = (64, 96)  # any size: the compiled network takes all sizes

# Packed copies of the weights, by input size and number of threads: the most, and their memory.
_MOST_COPIES, _PACKED_BYTES = 4, 2**26

# RMS difference of the logits, in standard deviations of the logits.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class OpenVinoNetwork(nn.Module):
    """A network compiled by OpenVINO for the processor.

    Shape: (N, 3, H, W) -> (N, classes, h, w), float32.

    PyTorch keeps the weights that were traced until the process ends, 4 bytes each.

    A call uses as many threads as `torch.set_num_threads` gave the calling thread.

    Attributes:
        precision: int8, bfloat16 or float32.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype, ranges: Ranges | None = None
    ) -> None:
        """Compiles the network, float32 on the CPU, to compute in `dtype`, or with `ranges` its
        large convolutions in int8.

        Raises:
            ImportError: OpenVINO is not installed.
            RuntimeError: OpenVINO does not support an operation of the network.
            ValueError: an operation depends on the size of the image: it would be compiled for one
                size. Or int8 is impossible, see `int8.quantize`.
        """
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

    def forward(self, x: Tensor) -> Tensor:
        with record_function("OpenVINO network"):  # one operator in a profile
            inputs = x.float().contiguous().numpy()
            return torch.from_numpy(self._model.infer(inputs, torch.get_num_threads()))


class FusedConv2d(nn.Module):
    """A convolution merged with the norm and the activation after it.

    Shape: as of `conv`. Computes in `dtype` and adds a float32 bias, which keeps the precision of
        the norm.

    oneDNN reorders weights that are not in the memory layout of its kernel. Which layout that is
    depends on the processor, on the input's size and on the number of threads, so packed copies are
    kept for the `copies` combinations that were used last. A copy for another size costs more than
    none: its reorder took three quarters of the network's time on AVX2.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        *,
        dtype: torch.dtype,
        copies: int,
    ) -> None:
        super().__init__()
        self._geometry = geometry = Geometry.of(conv)
        self._arguments = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        self._weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self._packed = lru_cache(copies)(self._pack)
        self._bias = None if bias is None else bias.float()
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self._geometry.padded(x)
        weight = self._packed(x.shape, torch.get_num_threads())
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self._bias, *self._arguments, *self._activation
        )
        return convolved

    def _pack(self, input_shape: torch.Size, _threads: int) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self._weight, *self._arguments, list(input_shape)
        )
        return packed


def cpu_fused_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Applies conv-BN fusion for inference on the CPU, with convolutions in `dtype`. Does not
    change `network`.

    If oneDNN is missing or its logits differ from the network's, it logs a warning and returns the
    network itself, which is slower but correct.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
    """
    size_bytes = sum(weight.numel() for weight in network.parameters()) * dtype.itemsize
    copies = min(_MOST_COPIES, _PACKED_BYTES // max(size_bytes, 1))

    def fused(copied: nn.Module, image: Tensor) -> nn.Module:
        fuse(copied, image, partial(FusedConv2d, dtype=dtype, copies=copies))
        return copied

    try:
        return verified(network, fused, dtype, TOLERANCES[dtype])
    except OptimizationError as error:
        logger.warning("the network runs unfused, which is slower: %s", error)
        return network


def int8_network(network: SegmentationNetwork, dtype: torch.dtype) -> OpenVinoNetwork:
    """The network with its large convolutions in int8 and the others in `dtype`. Does not change
    `network`.

    Args:
        network: float32 on the CPU, in evaluation mode, with its `ranges`.

    Raises:
        OptimizationError: it cannot be compiled so, or its logits differ too much.
    """
    return verified(
        network,
        lambda copied, _: OpenVinoNetwork(copied, dtype, network.ranges),
        dtype,
        INT8_TOLERANCE,
    )


def cpu_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network compiled by OpenVINO. Otherwise, with one warning, the network with conv-BN
    fusion. Does not change `network`.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
        dtype: of the multiplications, float32 or bfloat16.
    """
    try:
        return verified(
            network, lambda copied, _: OpenVinoNetwork(copied, dtype), dtype, TOLERANCES[dtype]
        )
    except OptimizationError as error:
        logger.warning("the network runs without OpenVINO, which is slower: %s", error)
        return cpu_fused_network(network, dtype)
