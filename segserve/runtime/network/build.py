"""Builds the network that a record describes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deeplabv3 import CoreNetHead, DeepLabHead, MultiScaleDeepLabHead

from ..errors import ModelError
from ..record import Architecture
from .backbone import build_backbone

Ranges = Mapping[str, tuple[float, float]]


class SegmentationNetwork(nn.Module):
    """A backbone, a head, and an auxiliary head if a published checkpoint has one.

    The auxiliary head is never computed.

    Shape: float (N, 3, H, W), RGB, normalised by the record's mean and std -> logits (N, classes,
        h, w). h and w are H
    and W divided by the architecture's `logits_stride`, rounded up.

    `ranges` holds the smallest and the largest input value of each convolution, by the
    convolution's name. It is empty if the ranges were not measured.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, aux_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self._is_multiscale = isinstance(head, MultiScaleDeepLabHead)
        self.ranges: Ranges = {}

    def forward(self, x: Tensor) -> Tensor:
        """The head's logits. The auxiliary head is not computed."""
        levels: list[Tensor] = self.backbone(x)
        logits: Tensor = self.head(levels if self._is_multiscale else levels[-1])
        return logits


def build_network(architecture: Architecture, num_classes: int) -> SegmentationNetwork:
    """Builds the network of this architecture with randomly initialised weights, in training mode.

    Raises:
        ModelError: the backbone does not exist, lacks the levels or the stride, or its channels do
            not match the head.
    """
    backbone, channels = build_backbone(architecture)
    try:
        head = _build_head(architecture, channels, num_classes)
        aux_head = FCNHead(channels[-2], num_classes) if architecture.aux_head else None
    except ValueError as error:
        raise ModelError(
            f"head {architecture.head} on backbone {architecture.backbone}: {error}"
        ) from error
    return SegmentationNetwork(backbone, head, aux_head)


def _build_head(architecture: Architecture, channels: Sequence[int], num_classes: int) -> nn.Module:
    options: dict[str, Any] = {
        "atrous_rates": architecture.aspp_rates,
        "aspp_out_channels": architecture.aspp_out_channels,
        "separable": architecture.aspp_sep_conv,
        "dropout": architecture.aspp_dropout,
    }
    if architecture.head == "multiscale":
        return MultiScaleDeepLabHead(
            channels,
            num_classes,
            aspp_in_channels=architecture.aspp_in_channels,
            output_upsample_factor=architecture.output_upsample_factor,
            **options,
        )
    single_level = {"deeplabv3": DeepLabHead, "corenet": CoreNetHead}[architecture.head]
    return single_level(channels[-1], num_classes, **options)
