"""The head of DeepLabV3: atrous spatial pyramid pooling (ASPP) and the classifiers built on it.

Imports torch alone, so that this one file can be read, copied, traced and packed on its own.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation",
arXiv:1706.05587, section 3.3. `ASPP` and `DeepLabHead` carry the parameter names of torchvision's
heads, so its published checkpoints load with `strict=True`; `CoreNetHead` and
`MultiScaleDeepLabHead` follow CoreNet's `deeplabv3` and `msc_deeplabv3` segmentation heads.

All inputs and outputs are floating point tensors (N, C, H, W); outputs are logits, not
probabilities. Every class raises ValueError if a channel count, the class count or a rate is below
1, or dropout is outside [0, 1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses


class ASPPConv(nn.Sequential):
    """One atrous branch: 3x3 convolution with holes, batch norm, ReLU.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Args:
        dilation: distance in pixels between the kernel's taps, also called the atrous rate; at
            least 1.
        separable: a depthwise atrous convolution and a pointwise one in place of the full 3x3
            kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int, *, separable: bool = False
    ) -> None:
        _check_positive(in_channels=in_channels, out_channels=out_channels, dilation=dilation)
        middle_channels, groups = (in_channels, in_channels) if separable else (out_channels, 1)
        convs = [
            nn.Conv2d(
                in_channels,
                middle_channels,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                groups=groups,
                bias=False,
            )
        ]
        if separable:
            convs.append(nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False))
        super().__init__(*convs, nn.BatchNorm2d(out_channels), nn.ReLU())


class ASPPPooling(nn.Sequential):
    """The image-level branch: global average, 1x1 convolution, batch norm, ReLU, spread over the
    input's size.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).

    With a batch of one, a channel has a single pooled value, of which no variance can be estimated:
    in training mode that batch is normalised with the running statistics, and leaves them as they
    are.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv1x1_bn_relu(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = self[2]
        pooled = self[1](self[0](x))
        if self.training and pooled.shape[0] == 1:
            mean, var, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
            pooled = F.batch_norm(pooled, mean, var, weight, bias, False, 0.0, norm.eps)  # type: ignore[arg-type]
        else:
            pooled = norm(pooled)
        return F.interpolate(
            self[3](pooled), size=x.shape[-2:], mode="bilinear", align_corners=False
        )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 branch, one branch per atrous rate and the image-level
    branch, concatenated and projected (figure 5 of the paper).

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Args:
        atrous_rates: one 3x3 branch for each; may be empty.
        separable: see `ASPPConv`.
        dropout: probability of zeroing an element of the projection while training, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        out_channels: int = 256,
        *,
        separable: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_positive(in_channels=in_channels, out_channels=out_channels)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, allowed is 0 <= dropout < 1")
        atrous = [
            ASPPConv(in_channels, out_channels, rate, separable=separable) for rate in atrous_rates
        ]
        conv1x1 = _conv1x1_bn_relu(in_channels, out_channels)
        pooling = ASPPPooling(in_channels, out_channels)
        self.convs = nn.ModuleList([conv1x1, *atrous, pooling])
        fused = _conv1x1_bn_relu(len(self.convs) * out_channels, out_channels)
        self.project = nn.Sequential(*fused, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        branches = [conv(x) for conv in self.convs]
        projected: Tensor = self.project(torch.cat(branches, dim=1))
        return projected


class DeepLabHead(nn.Sequential):
    """torchvision's DeepLabV3 head: ASPP, 3x3 convolution with batch norm and ReLU, 1x1 classifier.

    Shape: (N, in_channels, H, W) -> logits (N, num_classes, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int] = (12, 24, 36),
        *,
        aspp_out_channels: int = 256,
        separable: bool = False,
        dropout: float = 0.5,
    ) -> None:
        _check_positive(num_classes=num_classes)
        super().__init__(
            ASPP(
                in_channels, atrous_rates, aspp_out_channels, separable=separable, dropout=dropout
            ),
            nn.Conv2d(aspp_out_channels, aspp_out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(aspp_out_channels),
            nn.ReLU(),
            nn.Conv2d(aspp_out_channels, num_classes, kernel_size=1),
        )


class CoreNetHead(nn.Sequential):
    """CoreNet's DeepLabV3 head: ASPP straight into a 1x1 classifier.

    Shape: (N, in_channels, H, W) -> logits (N, num_classes, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int] = (6, 12, 18),
        *,
        aspp_out_channels: int = 256,
        separable: bool = False,
        dropout: float = 0.1,
    ) -> None:
        _check_positive(num_classes=num_classes)
        super().__init__(
            ASPP(
                in_channels, atrous_rates, aspp_out_channels, separable=separable, dropout=dropout
            ),
            nn.Conv2d(aspp_out_channels, num_classes, kernel_size=1),
        )


class MultiScaleDeepLabHead(nn.Module):
    """CoreNet's multi-scale head: backbone levels 2 to 5 meet at the size of level 3, are fused,
    then ASPP.

    Level 2 is pixel-unshuffled by 2, level 4 pixel-shuffled by 2 and level 5 by 4 (Shi et al.,
    arXiv:1609.05158). A level 2 of odd size is first padded with its last row or column; a level
    whose size then still differs from level 3's is resized to it bilinearly.

    Shape: [(N, C2, H2, W2), (N, C3, H, W), (N, C4, H4, W4), (N, C5, H5, W5)] -> logits
        (N, num_classes, f H, f W), f being `output_upsample_factor`.

    Args:
        level_channels: channels of levels 2, 3, 4 and 5. Level 4's divide by 4 and level 5's by 16.
        aspp_in_channels: channels of the fused levels.
        output_upsample_factor: the logits are upsampled bilinearly by so much, at least 1.

    Raises:
        ValueError: not four levels, or a channel count that does not divide.
    """

    def __init__(
        self,
        level_channels: Sequence[int],
        num_classes: int,
        atrous_rates: Sequence[int] = (6, 12, 18),
        *,
        aspp_in_channels: int = 512,
        aspp_out_channels: int = 256,
        separable: bool = False,
        dropout: float = 0.1,
        output_upsample_factor: int = 1,
    ) -> None:
        super().__init__()
        _check_positive(output_upsample_factor=output_upsample_factor)
        self.output_upsample_factor = output_upsample_factor
        self.fuse = _conv1x1_bn_relu(_fused_channels(level_channels), aspp_in_channels)
        self.head = CoreNetHead(
            aspp_in_channels,
            num_classes,
            atrous_rates,
            aspp_out_channels=aspp_out_channels,
            separable=separable,
            dropout=dropout,
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        if len(levels) != 4:
            raise ValueError(
                f"levels: got {len(levels)} tensors, expected 4 (levels 2, 3, 4 and 5)"
            )
        level2, level3, level4, level5 = levels[0], levels[1], levels[2], levels[3]
        fused = torch.cat(
            [
                _resized_to(F.pixel_unshuffle(_padded_to_even(level2), 2), level3),
                level3,
                _resized_to(F.pixel_shuffle(level4, 2), level3),
                _resized_to(F.pixel_shuffle(level5, 4), level3),
            ],
            dim=1,
        )
        logits: Tensor = self.head(self.fuse(fused))
        if self.output_upsample_factor == 1:
            return logits
        factor = float(self.output_upsample_factor)
        return F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)


class DeepLabV3PlusHead(nn.Module):
    """The head of DeepLabV3+ (Chen et al., arXiv:1802.02611, figure 2): the ASPP's output is
    upsampled to the size of a shallow level, concatenated with that level, and refined.

    The layers and the upsampling (`align_corners=True`) are those of segmentation_models_pytorch,
    so its checkpoints give the same logits.

    Shape: [(N, C2, H, W), (N, C5, h, w)] -> logits (N, num_classes, H, W).

    Args:
        level_channels: channels of level 2 and of the deepest level.
        separable: of the ASPP, see `ASPPConv`. The other two 3x3 convolutions always are.

    Raises:
        ValueError: not two levels.
    """

    low_level_channels = 48

    def __init__(
        self,
        level_channels: Sequence[int],
        num_classes: int,
        atrous_rates: Sequence[int] = (12, 24, 36),
        *,
        aspp_out_channels: int = 256,
        separable: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_positive(num_classes=num_classes)
        if len(level_channels) != 2:
            raise ValueError(
                f"level_channels: got {len(level_channels)} counts, expected 2 (level 2 and the "
                "deepest)"
            )
        shallow, deepest = level_channels
        self.aspp = ASPP(
            deepest, atrous_rates, aspp_out_channels, separable=separable, dropout=dropout
        )
        self.aspp_conv = ASPPConv(aspp_out_channels, aspp_out_channels, 1, separable=True)
        self.low_level = _conv1x1_bn_relu(shallow, self.low_level_channels)
        self.fuse = ASPPConv(
            self.low_level_channels + aspp_out_channels, aspp_out_channels, 1, separable=True
        )
        self.classifier = nn.Conv2d(aspp_out_channels, num_classes, kernel_size=1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        if len(levels) != 2:
            raise ValueError(f"levels: got {len(levels)} tensors, expected 2")
        shallow, deepest = levels[0], levels[1]
        context = F.interpolate(
            self.aspp_conv(self.aspp(deepest)),
            size=shallow.shape[-2:],
            mode="bilinear",
            align_corners=True,
        )
        fused = self.fuse(torch.cat([context, self.low_level(shallow)], dim=1))
        logits: Tensor = self.classifier(fused)
        return logits


def _conv1x1_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    _check_positive(in_channels=in_channels, out_channels=out_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _fused_channels(level_channels: Sequence[int]) -> int:
    """Channels of the four levels once they are brought to the size of level 3 and concatenated."""
    divisors = (1, 1, 4, 16)
    if len(level_channels) != 4 or any(
        channels < 1 or channels % divisor
        for channels, divisor in zip(level_channels, divisors, strict=True)
    ):
        raise ValueError(
            f"level_channels: got {tuple(level_channels)}, expected those of levels 2 to 5, which "
            f"are positive multiples of {divisors}"
        )
    level2, level3, level4, level5 = level_channels
    return level2 * 4 + level3 + level4 // 4 + level5 // 16


# A trace keeps the operations of the image that it was made with. So under a trace, these two pad
# and resize whatever the sizes are; where the sizes agree already, nothing changes.


def _padded_to_even(x: Tensor) -> Tensor:
    odd_height, odd_width = x.shape[-2] % 2, x.shape[-1] % 2
    is_traced = not torch.jit.is_scripting() and torch.jit.is_tracing()
    if not is_traced and odd_height == 0 and odd_width == 0:
        return x
    return F.pad(x, [0, odd_width, 0, odd_height], mode="replicate")


def _resized_to(x: Tensor, reference: Tensor) -> Tensor:
    size = reference.shape[-2:]
    is_traced = not torch.jit.is_scripting() and torch.jit.is_tracing()
    if not is_traced and x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: got {count}, expected at least 1")
