"""Builds backbones: timm's, and torchvision's own for the checkpoints that torchvision publishes.

Levels are numbered as in CoreNet: level n has stride 2**n, before dilation reduces it to the output
    stride.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from timm.layers.conv2d_same import Conv2dSame
from timm.models import FeatureInfo
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from ..errors import ModelError
from ..record import Architecture

_TORCHVISION_PREFIX = "torchvision."
_LEVELS = {"multiscale": (2, 3, 4, 5), "deeplabv3plus": (2, 5)}  # by head; others: the deepest


def build_backbone(architecture: Architecture) -> tuple[nn.Module, list[int]]:
    """Builds the backbone with randomly initialised weights. Returns it with the channels of its
    levels.

    Shape: (N, 3, H, W) -> list of levels, the shallowest first. The multi-scale head gets levels 2
        to 5. The other
    heads get the deepest level. With an auxiliary head, the level that it reads comes before the
    deepest.

    Raises:
        ModelError: the backbone does not exist, lacks a level, or does not support the output
            stride or the padding.
    """
    name = architecture.backbone
    if not name.startswith(_TORCHVISION_PREFIX):
        return _timm_backbone(architecture)
    source = _TORCHVISION.get(name.removeprefix(_TORCHVISION_PREFIX))
    if source is None:
        known = ", ".join(f"{_TORCHVISION_PREFIX}{known}" for known in _TORCHVISION)
        raise ModelError(
            f"backbone {name}: of torchvision's there are {known}; without the prefix it is timm's"
        )
    if architecture.padding != "default":
        raise ModelError(
            f"backbone {name}: padding {architecture.padding} is for timm's backbones: leave it out"
        )
    return source.build(architecture)


def _wanted_levels(architecture: Architecture, available: Collection[int]) -> list[int]:
    """The levels that the heads read.

    Raises:
        ModelError: the backbone lacks one of them; the message lists the levels that it has.
    """
    deepest = sorted(available)[-2:] if architecture.aux_head else [max(available)]
    wanted = list(_LEVELS.get(architecture.head, deepest))
    if set(wanted) <= set(available) and len(wanted) > architecture.aux_head:
        return wanted
    need = (
        f"the levels {', '.join(map(str, wanted))}"
        if architecture.head in _LEVELS
        else "a level before the last for aux_head"
    )
    has = ", ".join(f"{level} (stride {2**level})" for level in sorted(available))
    raise ModelError(
        f"backbone {architecture.backbone}: head {architecture.head} needs {need}, it has {has}"
    )


# timm


def _timm_backbone(architecture: Architecture) -> tuple[nn.Module, list[int]]:
    name, stride = architecture.backbone, architecture.output_stride
    info, is_nchw = _timm_preview(name)
    strides: list[int] = info.get("reduction", [*range(len(info))])
    # If strides repeat, the last level.
    index_of = {own.bit_length() - 1: index for index, own in enumerate(strides)}
    indices = [index_of[level] for level in _wanted_levels(architecture, index_of.keys())]
    if stride > strides[-1]:
        raise ModelError(
            f"backbone {name}: got output_stride {stride}, its last level has {strides[-1]}"
        )
    options: dict[str, Any] = {"output_stride": stride} if stride < strides[-1] else {}
    if architecture.padding == "same":
        options["pad_type"] = "same"
    if architecture.dilation != "default":
        raise ModelError(
            f"backbone {name}: dilation {architecture.dilation} is for torchvision's ResNets"
        )
    try:
        if architecture.use_l5_exp:
            return _expanded_timm_backbone(name, indices, options)
        if not is_nchw:
            options["feature_cls"] = "getter"  # converts levels from (N, H, W, C)
        backbone: Any = timm.create_model(name, features_only=True, out_indices=indices, **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"backbone {name}: timm cannot lower its stride to {stride}: set output_stride to "
            f"{strides[-1]}"
        ) from error
    if architecture.padding == "centered":
        _center_cells(backbone, name, stride)
    return backbone, backbone.feature_info.channels()


def _center_cells(backbone: nn.Module, name: str, stride: int) -> None:
    """Pads strided convolutions so that cell i of the last level is centred on pixel `stride * i +
    stride / 2 - 1`.

    A 3x3 convolution of stride 2 centres output i on input 2i if it pads both sides. It centres
    output i on input 2i+1 if it pads only the end, as TensorFlow does for inputs of even size.
    Here, all strided convolutions but the last pad only the end. That gives the centre above.
    Bilinear resizing with `align_corners=False` expects half a pixel more.

    Raises:
        ModelError: the strides do not come from consecutive 3x3 convolutions.
    """
    strided = [
        (path, module)
        for path, module in backbone.named_modules()
        if getattr(module, "stride", 1) == (2, 2)
    ]
    are_3x3 = (isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) for _, conv in strided)
    if not all(are_3x3) or 2 ** len(strided) != stride:
        raise ModelError(
            f"backbone {name}: padding centered needs 3x3 convolutions of stride 2, one after the "
            "other"
        )
    for path, conv in strided[:-1]:
        has_bias, channels = conv.bias is not None, (conv.in_channels, conv.out_channels)
        same = Conv2dSame(*channels, 3, stride=2, groups=conv.groups, bias=has_bias)
        backbone.set_submodule(path, same)
    strided[-1][1].padding = (1, 1)


def _timm_preview(name: str) -> tuple[FeatureInfo, bool]:
    """What timm knows about all levels of a backbone, and whether the levels are (N, C, H, W)."""
    try:
        with torch.device("meta"):  # computes shapes only, which is fast
            backbone: Any = timm.create_model(name, features_only=True).eval()
            backbone(torch.empty(1, 3, 64, 96))  # some backbones accept only one size
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"backbone {name}: timm cannot give its levels: {' '.join(str(error).split())}"
        ) from error
    return backbone.feature_info, getattr(backbone, "output_fmt", "NCHW") == "NCHW"


def _expanded_timm_backbone(
    name: str, indices: list[int], options: dict[str, Any]
) -> tuple[nn.Module, list[int]]:
    """The backbone whose last level is the output of its final 1x1 convolution."""
    model: Any = timm.create_model(name, num_classes=0, **options)
    channels: list[int] = [model.feature_info[index]["num_chs"] for index in indices]
    if model.num_features <= channels[-1]:
        raise _no_expansion(name, channels[-1])
    return _ExpandedLevels(model, indices), [*channels[:-1], model.num_features]


def _no_expansion(name: str, channels: int) -> ModelError:
    return ModelError(
        f"backbone {name}: no convolution widens its last level, of {channels} channels: leave out "
        "use_l5_exp"
    )


class _ExpandedLevels(nn.Module):
    def __init__(self, model: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.model: Any = model
        self._indices = indices

    def forward(self, x: Tensor) -> list[Tensor]:
        expanded, levels = self.model.forward_intermediates(x, indices=self._indices)
        return [*levels[:-1], expanded]


# torchvision


@dataclass(frozen=True)
class _Torchvision:
    """A torchvision classifier, used as a backbone in the same way as torchvision's DeepLabV3
    models use it.

    Attributes:
        bodies: by output stride, a function that builds the network.
        levels: by level, the name and the channels of the child module that ends the level.
        expansion: the name and the channels of the final 1x1 convolution, if there is one.
        uniform: whether the levels are stages whose stride can be replaced by dilation.
        aux: the name and the channels of the level that the published checkpoint's auxiliary head
            reads.
    """

    bodies: Mapping[int, Callable[[], nn.Module]]
    levels: Mapping[int, tuple[str, int]]
    aux: tuple[str, int]
    expansion: tuple[str, int] | None = None
    uniform: bool = False

    def build(self, architecture: Architecture) -> tuple[nn.Module, list[int]]:
        name, stride = architecture.backbone, architecture.output_stride
        if stride not in self.bodies:
            strides = " and ".join(map(str, self.bodies))
            raise ModelError(
                f"backbone {name}: got output_stride {stride}, torchvision gives {strides}"
            )
        if architecture.dilation == "uniform" and not self.uniform:
            raise ModelError(f"backbone {name}: dilation uniform is for torchvision's ResNets")
        taps = [self.levels[level] for level in _wanted_levels(architecture, self.levels.keys())]
        if architecture.use_l5_exp:
            if self.expansion is None:
                raise _no_expansion(name, taps[-1][1])
            taps[-1] = self.expansion
        if architecture.aux_head and architecture.head not in _LEVELS:
            taps[0] = self.aux
        try:
            body = self.bodies[32 if architecture.dilation == "uniform" else stride]()
        except NotImplementedError as error:
            raise ModelError(
                f"backbone {name}: torchvision cannot lower its stride to {stride}: set dilation "
                "to uniform, or output_stride to 32"
            ) from error
        if architecture.dilation == "uniform":
            for level, (child, _) in self.levels.items():
                if 2**level > stride:
                    _dilate(body.get_submodule(child), 2**level // stride)
        return _Taps(body, [child for child, _ in taps]), [channels for _, channels in taps]


def _dilate(stage: nn.Module, rate: int) -> None:
    """Replaces the stride of a stage by dilation in every convolution."""
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride, conv.dilation = (1, 1), (rate, rate)
            conv.padding = (conv.kernel_size[0] // 2 * rate, conv.kernel_size[1] // 2 * rate)


class _Taps(IntermediateLayerGetter):  # type: ignore[misc]
    """Runs the children of `body` up to the last one in `names`. Outputs those in `names`."""

    def __init__(self, body: nn.Module, names: Sequence[str]) -> None:
        super().__init__(body, {name: name for name in names})

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(super().forward(x).values())


def _resnet(depth: int) -> _Torchvision:
    draw: Any = getattr(torchvision.models, f"resnet{depth}")
    dilated = {8: (False, True, True), 16: (False, False, True), 32: (False, False, False)}
    wide = 4 if depth >= 50 else 1  # bottleneck blocks widen their output
    return _Torchvision(
        bodies={
            stride: partial(draw, replace_stride_with_dilation=stages)
            for stride, stages in dilated.items()
        },
        levels={
            1: ("relu", 64),
            2: ("layer1", 64 * wide),
            3: ("layer2", 128 * wide),
            4: ("layer3", 256 * wide),
            5: ("layer4", 512 * wide),
        },
        aux=("layer3", 256 * wide),
        uniform=True,
    )


def _mobilenet_v3_large(*, dilated: bool) -> nn.Module:
    features: nn.Module = torchvision.models.mobilenet_v3_large(dilated=dilated).features
    return features


_TORCHVISION: Mapping[str, _Torchvision] = {
    **{f"resnet{depth}": _resnet(depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v3_large": _Torchvision(
        bodies={stride: partial(_mobilenet_v3_large, dilated=stride == 16) for stride in (16, 32)},
        levels={1: ("1", 16), 2: ("3", 24), 3: ("6", 40), 4: ("12", 112), 5: ("15", 160)},
        aux=("4", 40),  # the first block of stride 8
        expansion=("16", 960),
    ),
}
