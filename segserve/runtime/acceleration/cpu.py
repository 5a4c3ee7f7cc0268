"""Networks of PyTorch on a CPU: OpenVINO computes them, see `openvino_model`."""

import logging
import warnings

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..network.ranges import Ranges
from ..network.weights import SegmentationNetwork
from .int8 import INT8_TOLERANCE, quantize
from .openvino_model import OpenVinoModel, OpenVinoPrecision
from .verified import OptimizationError, verified

logger = logging.getLogger(__name__)

_PRECISIONS: dict[torch.dtype, OpenVinoPrecision] = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TRACED_HW = (64, 96)  # any size: the compiled network takes all sizes

# RMS difference of the logits, in standard deviations of the logits.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}


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
    """The network compiled by OpenVINO. Otherwise, with one warning, the network itself.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
        dtype: of the multiplications, float32 or bfloat16.
    """
    try:
        return verified(
            network, lambda copied, _: OpenVinoNetwork(copied, dtype), dtype, _TOLERANCES[dtype]
        )
    except OptimizationError as error:
        logger.warning("the network runs without OpenVINO, which is slower: %s", error)
        return network
