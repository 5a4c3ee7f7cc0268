"""Conv-BN fusion: one layer replaces a convolution, its norm and its activation."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.nn.utils.fusion import fuse_conv_bn_eval

Activation = Callable[[Tensor], Tensor]
"""An activation that may change its input."""

_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: torch.relu_,
    nn.ReLU6: partial(F.hardtanh_, min_val=0.0, max_val=6.0),
    nn.Hardswish: partial(F.hardswish, inplace=True),
    nn.SiLU: partial(F.silu, inplace=True),
}

Layer = Callable[[nn.Conv2d, Tensor, Tensor | None, Activation], nn.Module]
"""Builds the layer that replaces a convolution.

Its arguments are the convolution, the weight and the bias with the norm merged in, float32, and the
activation after it.
"""


@dataclass(frozen=True)
class _Call:
    """One call of a module: its input and its output."""

    name: str
    module: nn.Module
    given: Tensor
    gave: Tensor


def no_activation(x: Tensor) -> Tensor:
    """Returns its input."""
    return x


def fuse(network: nn.Module, image: Tensor, layer: Layer) -> None:
    """Replaces every convolution that runs once per image, with the norm and the activation after
    it.

    Args:
        network: changed in place; a merged norm or activation becomes an `nn.Identity`.
        image: float32 (N, 3, H, W). Runs through the network to find the order of the modules.
    """
    calls = _calls(network, image)
    times = Counter(call.name for call in calls)
    for index, call in enumerate(calls):
        if _is_fusible(call.module) and times[call.name] == 1:
            followers = [each for each in _followers(calls, index) if times[each.name] == 1]
            replacements = _replacements(call.name, call.module, followers, layer)
            for name, module in replacements.items():
                network.set_submodule(name, module)


def _calls(network: nn.Module, image: Tensor) -> list[_Call]:
    """The innermost modules in the order of their calls. A norm counts as innermost."""
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
    return (
        type(module) in (nn.Conv2d, Conv2dSame)
        and module.padding_mode == "zeros"
        and module.padding != "same"
    )


def _followers(calls: Sequence[_Call], index: int) -> Iterator[_Call]:
    """The next two calls, as long as the input of each is the output of the one before it."""
    for before, after in pairwise(calls[index : index + 3]):
        if after.given is not before.gave:
            return
        yield after


def _replacements(
    conv_name: str, conv: nn.Conv2d, followers: Sequence[_Call], layer: Layer
) -> dict[str, nn.Module]:
    """By name, the replacements of a convolution, of its norm and of its activation."""
    weight, bias, replaced = conv.weight, conv.bias, dict[str, nn.Module]()
    following = [(follower.name, follower.module) for follower in followers]
    norm = following[0][1] if following else None
    if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
        name, _ = following.pop(0)
        fused = fuse_conv_bn_eval(conv, norm)
        weight, bias = fused.weight, fused.bias
        # The norms of timm include their activation.
        replaced[name] = getattr(norm, "act", nn.Identity())
        if not isinstance(replaced[name], nn.Identity):
            following = [(name, replaced[name])]
    activation: Activation = no_activation
    if following and type(following[0][1]) in _ACTIVATIONS:
        name, module = following[0]
        activation = _ACTIVATIONS[type(module)]
        replaced[name] = nn.Identity()
    return replaced | {conv_name: layer(conv, weight, bias, activation)}
