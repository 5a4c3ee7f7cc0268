"""Depthwise convolutions with a fast backward pass on a CPU, for training.

PyTorch's own backward pass is 10 to 50 times slower than its forward pass if the convolution has a
stride, a dilation or a 5x5 kernel. It takes more than half of a training step of a mobile backbone.
Here, the same gradients come from fast operations:

- of the input: the forward convolution of the output's gradient with the kernel turned by 180
  degrees; with a stride, zeros are inserted between the pixels of the gradient;
- of the kernel: PyTorch's own operation, but in float32, which is 3 times faster than bf16.
"""

# ruff: noqa: ANN401 - torch passes and takes any type here

from typing import Any, TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

Pair = tuple[int, int]


def use_fast_depthwise(network: nn.Module) -> None:
    """Replaces the depthwise convolutions of a network on the CPU by `FastDepthwiseConv2d`.

    Parameters and the keys of the state dict stay the same.
    """
    for path, module in list(network.named_modules()):
        if is_supported(module):
            network.set_submodule(path, FastDepthwiseConv2d(module))


def is_supported(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether this is a depthwise convolution that `FastDepthwiseConv2d` computes."""
    if type(module) not in (nn.Conv2d, Conv2dSame) or not isinstance(module, nn.Conv2d):
        return False
    is_depthwise = module.groups == module.in_channels == module.out_channels > 1
    if not is_depthwise or module.bias is not None or module.padding_mode != "zeros":
        return False
    reach = _reach(_pair(module.kernel_size), _pair(module.dilation))
    padding = _padding(module)
    return padding is not None and all(p <= r for p, r in zip(padding, reach, strict=True))


class FastDepthwiseConv2d(nn.Module):
    """A depthwise convolution without bias. It uses the parameter `weight` of `conv`.

    Shape: (N, C, H, W) -> (N, C, H', W'), as of `conv`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self._pads_as_tensorflow = isinstance(conv, Conv2dSame)
        self._kernel = _pair(conv.kernel_size)
        self._stride, self._dilation = _pair(conv.stride), _pair(conv.dilation)
        self._padding = _padding(conv)

    def forward(self, x: Tensor) -> Tensor:
        if self._pads_as_tensorflow:
            x = pad_same(x, [*self._kernel], [*self._stride], [*self._dilation])
        result: Tensor = DepthwiseConvolution.apply(
            x, self.weight, self._stride, self._padding, self._dilation
        )
        return result


def _padding(conv: nn.Conv2d) -> Pair | None:
    """Zeros before and after, down and across; None if `conv` names its padding."""
    return None if isinstance(conv.padding, str) else _pair(conv.padding)


def _reach(kernel: Pair, dilation: Pair) -> Pair:
    """Pixels between the first and the last value of the kernel, down and across."""
    return dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)


def _pair(value: tuple[int, ...]) -> Pair:
    return value[0], value[-1]


class DepthwiseConvolution(torch.autograd.Function):
    """Shape: x (N, C, H, W), weight (C, 1, h, w) -> (N, C, H', W'), as `torch.conv2d`."""

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
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        input_grad = _input_grad(grad, x, weight, *ctx.geometry) if needs_x else None
        weight_grad = _weight_grad(grad, x, weight, *ctx.geometry) if needs_weight else None
        return input_grad, weight_grad, None, None, None


def _input_grad(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    reach = _reach(_pair(weight.shape[2:]), dilation)
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
