"""Runs the network in int8, which processors with VNNI multiply faster than bf16.

Static quantization as in Jacob et al. (arXiv:1712.05877). Activations are uint8, with scales that
were measured beforehand. Weights are int8, with one scale per output channel. A convolution outputs
uint8 if only convolutions read its output. Otherwise it outputs float32.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, fx, nn

from ..network.weights import Ranges, SegmentationNetwork
from .fusion import Activation, Geometry, fuse
from .verified import TYPICAL_HW, OptimizationError, verified

_LARGEST_BYTE, _LARGEST_WEIGHT = 255, 127
_UNIT_STEP = 1.0

# The smallest range, for channels and activations that are always 0: values are divided by the
# step.
_LEAST_RANGE = 1e-6

# RMS difference of the logits, in standard deviations of the logits. A trained network has 0.03 to
# 0.08.
_TOLERANCE = 0.2


def quantized_network(network: SegmentationNetwork, device: torch.device) -> nn.Module:
    """Builds the same network for inference in int8. Does not change `network`.

    Args:
        network: float32 on the CPU, in evaluation mode, with its `ranges`.

    Raises:
        OptimizationError: the device is not a CPU with VNNI, ranges are missing, the network's
            operations depend on the image's size (`MultiScaleDeepLabHead`), or the logits differ
            too much from the network's.
    """
    if device.type != "cpu":
        raise OptimizationError("8 bits are for the CPU")
    if not has_vnni():
        raise OptimizationError("this processor has no VNNI")
    return verified(network, partial(_quantized, ranges=network.ranges), torch.float32, _TOLERANCE)


def has_vnni() -> bool:
    """Whether this processor multiplies int8 natively. Others are slower, and may overflow."""
    return bool(torch.cpu._is_vnni_supported())


@dataclass(frozen=True)
class Scale:
    """Converts a range of values to uint8. The byte `zero` represents 0 exactly."""

    step: float
    zero: int

    @classmethod
    def of(cls, least: float, largest: float) -> Self:
        least, largest = min(least, 0.0), max(largest, 0.0)
        step = max(largest - least, _LEAST_RANGE) / _LARGEST_BYTE
        return cls(step, round(-least / step))

    def bytes_of(self, values: Tensor) -> Tensor:
        """float32 -> uint8 of the same shape and layout."""
        shifted = torch.add(torch.tensor(self.zero + 0.5), values, alpha=1 / self.step)
        # Via int32: torch converts float32 directly to uint8 at a quarter of the speed.
        return shifted.clamp_(0, _LARGEST_BYTE).to(torch.int32).to(torch.uint8)


class Quantize(nn.Module):
    """Quantizes float32 to uint8 with a scale."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self._scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self._scale.bytes_of(x)


class FusedSpec(nn.Module):
    """The parts of a `QuantizedConv2d`, until the scales around it are known."""

    def __init__(
        self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: Activation
    ) -> None:
        super().__init__()
        self.geometry, self.in_channels = Geometry.of(conv), conv.in_channels
        self.weight, self.bias, self.activation = weight, bias, activation


class QuantizedConv2d(nn.Module):
    """uint8 (N, C, H, W) -> uint8 if `gives` is a scale, else float32."""

    def __init__(self, fused: FusedSpec, given: Scale, gives: Scale | None) -> None:
        super().__init__()
        self._geometry = geometry = fused.geometry
        self._arguments = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        self._given, self._bias, self._activation = given, fused.bias, fused.activation
        self._output = (
            (1.0, 0, torch.float32) if gives is None else (gives.step, gives.zero, torch.uint8)
        )
        weight = fused.weight
        steps = weight.abs().amax(dim=(1, 2, 3)).clamp(min=_LEAST_RANGE) / _LARGEST_WEIGHT
        whole = (weight / steps.view(-1, 1, 1, 1)).round().to(torch.int8)
        # The kernels multiply the sum by the input's and the weight's scale, in an order that
        # depends on the number of threads. So the input's scale is 1 and the weight's is the
        # product: every order then gives the same digits.
        self._steps, self._zeros = steps * given.step, torch.zeros(len(steps), dtype=torch.int64)
        self._weight = torch.ops.onednn.qconv_prepack(
            whole.contiguous(memory_format=torch.channels_last),
            self._steps,
            _UNIT_STEP,
            given.zero,
            *self._arguments,
            [1, fused.in_channels, *TYPICAL_HW],
        )

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = torch.ops.onednn.qconv2d_pointwise(
            self._geometry.padded(x, self._given.zero),
            _UNIT_STEP,
            self._given.zero,
            self._weight,
            self._steps,
            self._zeros,
            self._bias,
            *self._arguments,
            *self._output,
            *self._activation,
        )
        return convolved


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FusedSpec) or super().is_leaf_module(module, name)


def _quantized(network: nn.Module, image: Tensor, ranges: Ranges) -> nn.Module:
    """Quantizes in place. The graph shows which modules read a convolution's output."""
    fuse(network, image, FusedSpec)
    graph = _Tracer().trace(network)
    convs: dict[fx.Node, FusedSpec] = {}
    for node in graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Identity | nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif isinstance(module, FusedSpec):
            convs[node] = module
    unknown = [name for name in map(str, (node.target for node in convs)) if name not in ranges]
    if unknown:
        raise ValueError(f"the range of the input of {unknown[0]} was not measured")
    read = {node: node.all_input_nodes[0] for node in convs}
    scales: dict[fx.Node, Scale] = {}  # of the convolutions' inputs
    for node, source in read.items():
        scales.setdefault(source, Scale.of(*ranges[str(node.target)]))
    giving_bytes = {node for node in convs if convs.keys() >= node.users.keys()}
    for node, fused in convs.items():
        gives = scales[node] if node in giving_bytes else None
        network.set_submodule(str(node.target), QuantizedConv2d(fused, scales[read[node]], gives))
    for index, (source, scale) in enumerate(scales.items()):
        if source not in giving_bytes:
            network.add_module(f"quantize_{index}", Quantize(scale))
            with graph.inserting_after(source):
                in_bytes = graph.call_module(f"quantize_{index}", (source,))
            for reader in convs.keys() & source.users.keys():
                reader.replace_input_with(source, in_bytes)
    return fx.GraphModule(network, graph)
