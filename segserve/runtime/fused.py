"""The network as oneDNN computes it best: norms folded into the convolutions, activations computed inside of them.

It is what a compiler makes of such a network, and as fast on a CPU, but needs none: it is ready in a fraction of a
second and takes images of any size, so that no request ever waits for a kernel to be compiled.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

# Size of the image on which the fused network is compared with the plain one: small, and a multiple of all strides.
_CHECKED_HW = (128, 160)

# Root mean square of the logits' difference, in standard deviations of the logits. A wrong network is near 1.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}

# oneDNN's name, its parameters and its algorithm, as `mkldnn::_convolution_pointwise` takes them.
_Activation = tuple[str, list[float], str]
_NO_ACTIVATION: _Activation = ("none", [], "")
_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.SiLU: ("swish", [], ""),
}


class FusedConv2d(nn.Module):
    """A convolution with the norm and the activation that follow it, its weights laid out for oneDNN.

    Shape: as of `conv`; computes in the weights' dtype, and adds a bias of float32, which carries the norm's digits.
    """

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: _Activation) -> None:
        super().__init__()
        self._same_padding = isinstance(conv, Conv2dSame)
        self._kernel, self._stride, self._dilation = conv.kernel_size, conv.stride, conv.dilation
        padding = [0, 0] if self._same_padding else list(conv.padding)
        self._geometry = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        weight = weight.contiguous(memory_format=torch.channels_last)
        typical_shape = [1, conv.in_channels, *_CHECKED_HW]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, typical_shape)
        self._bias = bias
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self._same_padding:
            x = pad_same(x, list(self._kernel), list(self._stride), list(self._dilation))
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, *self._activation
        )
        return convolved


def fused_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network for inference on the CPU, its convolutions in `dtype`; the network itself is left as it is.

    Where oneDNN is missing, or does not give the logits that the network gives, that is logged as a warning and the
    network itself returned: it is slower, and right.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *_CHECKED_HW, generator=generator).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            fused = copy.deepcopy(network)
            _fuse(fused, image, dtype)
            error = _relative_error(fused(image.to(dtype)).float(), network(image))
    except Exception as failure:  # private operators: whatever a version of PyTorch makes of them
        reason = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    else:
        if error <= _TOLERANCES[dtype]:
            return fused
        reason = f"its logits differ by {error:.2g} standard deviations"
    logger.warning("the network runs unfused, which is slower: %s", reason)
    return network


def _relative_error(logits: Tensor, expected: Tensor) -> float:
    spread = expected.std().clamp(min=torch.finfo(torch.float32).tiny)
    return float((logits - expected).square().mean().sqrt() / spread)


@dataclass(frozen=True)
class _Call:
    """A module at work: what it was given and what it gave."""

    name: str
    module: nn.Module
    given: Tensor
    gave: Tensor


def _fuse(network: nn.Module, image: Tensor, dtype: torch.dtype) -> None:
    """Replaces every convolution, and what follows it, where they are at work once for an image."""
    calls = _calls(network, image)
    times = Counter(call.name for call in calls)
    for index, call in enumerate(calls):
        if _is_fusible(call.module) and times[call.name] == 1:
            followers = [follower for follower in _followers(calls, index) if times[follower.name] == 1]
            for name, module in _replacements(call, followers, dtype).items():
                network.set_submodule(name, module)


def _calls(network: nn.Module, image: Tensor) -> list[_Call]:
    """The innermost modules in the order in which they work on an image; norms count as innermost."""
    calls: list[_Call] = []
    names = {module: name for name, module in _innermost(network)}

    def take_note(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> None:
        calls.append(_Call(names[module], module, given[0], gave))

    hooks = [module.register_forward_hook(take_note) for module in names]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _innermost(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    children = [] if isinstance(module, nn.BatchNorm2d) else list(module.named_children())
    if not children:
        yield name, module
    for child_name, child in children:
        yield from _innermost(child, f"{name}.{child_name}" if name else child_name)


def _is_fusible(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(module) in (nn.Conv2d, Conv2dSame) and module.padding_mode == "zeros" and module.padding != "same"


def _followers(calls: Sequence[_Call], index: int) -> Iterator[_Call]:
    """The next two calls, as far as each is given what the one before it gave."""
    for before, after in pairwise(calls[index : index + 3]):
        if after.given is not before.gave:
            return
        yield after


def _replacements(call: _Call, followers: Sequence[_Call], dtype: torch.dtype) -> dict[str, nn.Module]:
    """By name what takes the place of a convolution, of its norm and of its activation."""
    conv = call.module
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - _is_fusible
    weight, bias, replaced = conv.weight, conv.bias, dict[str, nn.Module]()
    following = [(follower.name, follower.module) for follower in followers]
    if following and isinstance(norm := following[0][1], nn.BatchNorm2d) and norm.track_running_stats:
        name, _ = following.pop(0)
        weight, bias = _folded(conv, norm)
        replaced[name] = getattr(norm, "act", nn.Identity())  # timm's norms carry their activation
        if not isinstance(replaced[name], nn.Identity):
            following = [(name, replaced[name])]
    activation = _NO_ACTIVATION
    if following and type(following[0][1]) in _ACTIVATIONS:
        name, module = following[0]
        activation = _ACTIVATIONS[type(module)]
        replaced[name] = nn.Identity()
    bias = None if bias is None else bias.float()
    return replaced | {call.name: FusedConv2d(conv, weight.to(dtype), bias, activation)}


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # noqa: S101 - _replacements
    assert variance is not None  # noqa: S101
    return fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
