"""Depthwise convolutions whose backward pass is quick on a CPU.

PyTorch's own is 10 to 50 times slower than its forward pass where the convolution has a stride,
holes or a 5x5 kernel, and takes more than half of a training step of a mobile backbone. The same
gradients come from what is quick:

- of the input: the forward convolution of the output's gradient, with zeros between its pixels
  where there was a stride, and the kernel turned by 180 degrees;
- of the kernel: PyTorch's own, but in float32, which is 3 times quicker than in bf16.
"""

# ruff: noqa: ANN401 - what torch calls here takes anything

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


class FastDepthwise(TorchFunctionMode):
    """Within this context, depthwise convolutions on the CPU are computed by `DepthwiseConv2d`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        arguments = _Conv2d(*args, **(kwargs or {})) if func is torch.conv2d else None
        return (
            arguments.fast()
            if arguments and arguments.is_depthwise
            else func(*args, **(kwargs or {}))
        )


class _Conv2d(NamedTuple):
    """The arguments of `torch.conv2d`, by its names."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        return (
            self.input.device.type == "cpu"
            and self.bias is None
            and self.groups == self.input.shape[1] == self.weight.shape[0] > 1
            and not isinstance(self.padding, str)
            and all(
                p <= r
                for p, r in zip(
                    _pair(self.padding), _reach(self.weight, _pair(self.dilation)), strict=True
                )
            )
        )

    def fast(self) -> Tensor:
        geometry = _pair(self.stride), _pair(self.padding), _pair(self.dilation)
        result: Tensor = DepthwiseConv2d.apply(self.input, self.weight, *geometry)
        return result


def _reach(weight: Tensor, dilation: Pair) -> list[int]:
    """Pixels from the first tap of the kernel to the last, down and across."""
    return [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class DepthwiseConv2d(torch.autograd.Function):
    """Shape: x (N, C, H, W) and weight (C, 1, h, w) -> (N, C, H', W'), as `torch.conv2d` with C
    groups gives it.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return torch.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        return (
            _input_grad(grad, x, weight, *ctx.geometry) if wants_x else None,
            _weight_grad(grad, x, weight, *ctx.geometry) if wants_weight else None,
            None,
            None,
            None,
        )


def _input_grad(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    reach = _reach(weight, dilation)
    if stride != (1, 1):
        spread_hw = [
            size + 2 * p - r for size, p, r in zip(x.shape[2:], padding, reach, strict=True)
        ]
        spread = torch.zeros((*grad.shape[:2], *spread_hw), dtype=grad.dtype).contiguous(
            memory_format=torch.channels_last
        )
        spread[:, :, :: stride[0], :: stride[1]] = grad
        grad = spread
    outer = [r - p for r, p in zip(reach, padding, strict=True)]
    return torch.conv2d(grad, weight.flip(2, 3), None, 1, outer, dilation, x.shape[1])


def _weight_grad(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    gradients = torch.ops.aten.convolution_backward(
        grad.float(), x.float(), weight.float(), None,
        stride, padding, dilation, False, (0, 0), x.shape[1], (False, True, False),
    )  # fmt: skip
    weight_grad: Tensor = gradients[1]
    return weight_grad
