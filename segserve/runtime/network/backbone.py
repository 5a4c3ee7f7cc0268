"""Builds backbones: timm's, and torchvision's own for the checkpoints that torchvision publishes.

Levels are numbered as in CoreNet: level n has stride 2**n, before dilation reduces it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    Shape: (N, 3, H, W) -> list of levels, the shallowest first: those of the head, see `_LEVELS`.
        With an auxiliary head, the level that it reads comes before the deepest.

    Raises:
        ModelError: the backbone does not exist, lacks a level, or does not support the output
            stride or the padding.
    """
    if architecture.backbone.startswith(_TORCHVISION_PREFIX):
        return _torchvision_backbone(architecture)
    return _timm_backbone(architecture)


def _wanted_levels(architecture: Architecture, available: Collection[int]) -> list[int]:
    """The levels that the heads read. Raises ModelError if the backbone lacks one."""
    deepest = sorted(available)[-2:] if architecture.aux_head else [max(available)]
    wanted = list(_LEVELS.get(architecture.head, deepest))
    if set(wanted) <= set(available) and len(wanted) > architecture.aux_head:
        return wanted
    need = ", ".join(map(str, wanted)) if architecture.head in _LEVELS else "two for aux_head"
    has = ", ".join(map(str, sorted(available)))
    raise ModelError(
        f"backbone {architecture.backbone}: head {architecture.head} needs levels: {need}; it has "
        f"{has} (level n has stride 2**n)"
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
    if architecture.dilation != "default":
        raise ModelError(f"backbone {name}: dilation is for torchvision's ResNets: leave it out")
    options: dict[str, Any] = {"output_stride": stride} if stride < strides[-1] else {}
    if architecture.padding == "same":
        options["pad_type"] = "same"
    backbone: Any
    try:
        if architecture.use_l5_exp:
            backbone, channels = _expanded_timm_backbone(name, indices, options)
        else:
            if not is_nchw:
                options["feature_cls"] = "getter"  # converts levels from (N, H, W, C)
            backbone = timm.create_model(name, features_only=True, out_indices=indices, **options)
            channels = backbone.feature_info.channels()
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"backbone {name}: timm cannot lower its stride to {stride}: set output_stride to "
            f"{strides[-1]}"
        ) from error
    if architecture.padding == "centered":
        _center_cells(backbone, name, stride)
    return backbone, channels


def _center_cells(backbone: nn.Module, name: str, stride: int) -> None:
    """Pads strided convolutions so that cell i of the last level is centred on pixel `stride * i +
    stride / 2 - 1`. Raises ModelError if the strides are not those of consecutive 3x3 convolutions.

    A 3x3 convolution of stride 2 centres output i on input 2i if it pads both sides. It centres
    output i on input 2i+1 if it pads only the end, as TensorFlow does for inputs of even size.
    Here, all strided convolutions but the last pad only the end. That gives the centre above.
    Bilinear resizing with `align_corners=False` expects half a pixel more.
    """
    strided = [
        (path, module)
        for path, module in backbone.named_modules()
        if getattr(module, "stride", 1) == (2, 2)
    ]
    are_3x3 = (isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) for _, conv in strided)
    if not all(are_3x3) or 2 ** len(strided) != stride:
        raise ModelError(
            f"backbone {name}: padding centered needs consecutive 3x3 convolutions of stride 2"
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


class _Level(NamedTuple):
    """The child module that ends a level, and its channels."""

    child: str
    channels: int


@dataclass(frozen=True)
class _Torchvision:
    """A torchvision classifier, used as a backbone as in torchvision's DeepLabV3 models.

    Attributes:
        body: builds the network of an output stride.
        aux: what the auxiliary head of the published checkpoint reads.
        expansion: the final 1x1 convolution, if there is one.
        is_resnet: its levels are stages whose stride can be replaced by dilation.
    """

    body: Callable[[int], nn.Module]
    levels: Mapping[int, _Level]
    aux: _Level
    expansion: _Level | None = None
    strides: Sequence[int] = (8, 16, 32)
    is_resnet: bool = True


def _torchvision_source(architecture: Architecture) -> _Torchvision:
    name, stride = architecture.backbone, architecture.output_stride
    source = _TORCHVISION.get(name.removeprefix(_TORCHVISION_PREFIX))
    if source is None:
        known = ", ".join(f"{_TORCHVISION_PREFIX}{known}" for known in _TORCHVISION)
        raise ModelError(f"backbone {name}: torchvision has {known}")
    if architecture.padding != "default":
        raise ModelError(f"backbone {name}: padding is for timm's backbones: leave it out")
    if stride not in source.strides:
        strides = " and ".join(map(str, source.strides))
        raise ModelError(
            f"backbone {name}: got output_stride {stride}, torchvision gives {strides}"
        )
    if architecture.dilation == "uniform" and not source.is_resnet:
        raise ModelError(f"backbone {name}: dilation uniform is for torchvision's ResNets")
    return source


def _torchvision_backbone(architecture: Architecture) -> tuple[nn.Module, list[int]]:
    name, stride = architecture.backbone, architecture.output_stride
    source, is_uniform = _torchvision_source(architecture), architecture.dilation == "uniform"
    taps = [source.levels[level] for level in _wanted_levels(architecture, source.levels.keys())]
    if architecture.use_l5_exp:
        if source.expansion is None:
            raise _no_expansion(name, taps[-1].channels)
        taps[-1] = source.expansion
    if architecture.aux_head and architecture.head not in _LEVELS:
        taps[0] = source.aux
    try:
        body = source.body(32 if is_uniform else stride)
    except NotImplementedError as error:
        raise ModelError(
            f"backbone {name}: torchvision cannot lower its stride to {stride}: set dilation to "
            "uniform, or output_stride to 32"
        ) from error
    if is_uniform:
        for level, (child, _) in source.levels.items():
            if 2**level > stride:
                _dilate(body.get_submodule(child), 2**level // stride)
    return _Taps(body, [tap.child for tap in taps]), [tap.channels for tap in taps]


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
    def body(stride: int) -> nn.Module:
        draw: Any = getattr(torchvision.models, f"resnet{depth}")
        network: nn.Module = draw(replace_stride_with_dilation=(False, stride < 16, stride < 32))
        return network

    wide = 4 if depth >= 50 else 1  # bottleneck blocks widen their output
    stages = {level: _Level(f"layer{level - 1}", 2**level * 16 * wide) for level in (2, 3, 4, 5)}
    return _Torchvision(body, {1: _Level("relu", 64), **stages}, aux=stages[4])


def _mobilenet_v3_large(stride: int) -> nn.Module:
    features: nn.Module = torchvision.models.mobilenet_v3_large(dilated=stride == 16).features
    return features


_TORCHVISION: Mapping[str, _Torchvision] = {
    **{f"resnet{depth}": _resnet(depth) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v3_large": _Torchvision(
        _mobilenet_v3_large,
        levels={
            1: _Level("1", 16),
            2: _Level("3", 24),
            3: _Level("6", 40),
            4: _Level("12", 112),
            5: _Level("15", 160),
        },
        aux=_Level("4", 40),  # the first block of stride 8
        expansion=_Level("16", 960),
        strides=(16, 32),
        is_resnet=False,
    ),
}
