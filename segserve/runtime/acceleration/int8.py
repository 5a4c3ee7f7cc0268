"""int8 convolutions in a model of OpenVINO, which processors with VNNI compute faster than in bf16.

Static quantization as in Jacob et al. (arXiv:1712.05877). Activations are uint8, with ranges that
were measured beforehand. Weights are int8, with one scale per output channel. This module needs no
PyTorch.
"""

import logging
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..network.ranges import Ranges
from ..record import ModelRecord
from ..settings import Settings

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

LEAST_WEIGHTS = 2**14
"""Smaller convolutions stay as they are, as do depthwise ones: they gain no time, and cause half of
the error."""

INT8_TOLERANCE = 0.2
"""Largest RMS difference of the logits, in standard deviations of the logits. Trained networks have
0.03 to 0.1."""

_LARGEST_BYTE = 255
_LEAST_RANGE = 1e-6  # for activations and channels that are always 0
_WEIGHT_NAME = re.compile(r"\w+\.(.+)\.weight(?:\.half)?")  # the first part is the module traced


def uses_int8(settings: Settings, record: ModelRecord, device: str) -> bool:
    """Whether a model computes in int8: if its ranges were measured, on a CPU with VNNI, unless the
    settings choose another precision. Logs a warning if they choose int8 and it is impossible.
    """
    if record.int8 is None or settings.precision not in ("auto", "int8"):
        return False
    obstacle = _obstacle(device)
    if settings.precision == "int8" and obstacle:
        logger.warning("the network does not compute in int8: %s", obstacle)
    return obstacle is None and (settings.fuse or settings.precision == "int8")


def _obstacle(device: str) -> str | None:
    if not device.startswith("cpu"):
        return "8 bits are for the CPU"
    if not has_vnni():
        return "this processor has no VNNI"
    return None if find_spec("openvino") else "OpenVINO is not installed"


@cache
def has_vnni() -> bool:
    """Whether this processor multiplies int8 natively. Others are slower, and may overflow."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:  # not Linux
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def quantize(model: "openvino.Model", ranges: Ranges) -> None:
    """Marks the convolutions that OpenVINO then computes in int8.

    Args:
        model: converted from PyTorch or ONNX, with PyTorch's names of the weights; changed in
            place.

    Raises:
        ValueError: no convolution is large enough to gain, or the range of one was not measured.
    """
    from openvino import opset13 as operations

    large = [
        (node, weight)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        if (weight := _weight(node)).get_byte_size() // weight.get_element_type().size
        >= LEAST_WEIGHTS
    ]
    if not large:
        raise ValueError(f"no convolution has {LEAST_WEIGHTS} weights or more")
    for convolution, weight in large:
        named = _WEIGHT_NAME.fullmatch(weight.get_friendly_name())
        name = named[1] if named else weight.get_friendly_name()
        if name not in ranges:
            raise ValueError(f"the range of the input of {name} was not measured")
        bounds = with_exact_zero(*ranges[name])
        activations = operations.fake_quantize(
            convolution.input_value(0), *bounds, *bounds, _LARGEST_BYTE + 1
        )
        largest = np.abs(weight.get_data().astype(np.float32)).max(axis=(1, 2, 3), keepdims=True)
        largest = np.maximum(largest, _LEAST_RANGE)
        weights = operations.fake_quantize(
            convolution.input_value(1), -largest, largest, -largest, largest, _LARGEST_BYTE
        )
        for index, node in enumerate((activations, weights)):
            convolution.input(index).replace_source_output(node.output(0))


def with_exact_zero(
    least: float, largest: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The bounds of a range whose 256 steps represent 0 exactly, as padding needs it."""
    least, largest = min(least, 0.0), max(largest, 0.0)
    step = max(largest - least, _LEAST_RANGE) / _LARGEST_BYTE
    zero = round(-least / step)
    return np.array(-zero * step, np.float32), np.array((_LARGEST_BYTE - zero) * step, np.float32)


def _weight(convolution: "openvino.Node") -> "openvino.Node":
    """The constant behind a conversion to float32, if there is one."""
    node = convolution.input_value(1).get_node()
    return node if node.get_type_name() == "Constant" else node.input_value(0).get_node()
