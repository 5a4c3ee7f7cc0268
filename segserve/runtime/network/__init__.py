"""The network that a record describes, with its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deeplabv3 import CoreNetHead, DeepLabHead, DeepLabV3PlusHead, MultiScaleDeepLabHead

from ..acceleration.openvino_model import Ranges, read_ranges
from ..errors import ModelError
from ..record import (
    WEIGHTS_FILE,
    Architecture,
    ModelRecord,
    Weights,
    named_weights,
    verified_file,
    write_verified,
)
from .backbone import build_backbone

State = Mapping[str, Tensor]


class SegmentationNetwork(nn.Module):
    """A backbone, a head, and an auxiliary head, never computed, if a published checkpoint has one.

    Shape: float (N, 3, H, W), RGB, normalised by the record's mean and std -> logits (N, classes,
        h, w). h and w are H and W divided by the architecture's `logits_stride`, rounded up.

    `ranges` is empty if they were not measured.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, aux_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self._reads_levels = isinstance(head, MultiScaleDeepLabHead | DeepLabV3PlusHead)
        self.ranges: Ranges = {}

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = self.backbone(x)
        logits: Tensor = self.head(levels if self._reads_levels else levels[-1])
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
    if architecture.head == "deeplabv3plus":
        return DeepLabV3PlusHead(channels, num_classes, **options)
    single_level = {"deeplabv3": DeepLabHead, "corenet": CoreNetHead}[architecture.head]
    return single_level(channels[-1], num_classes, **options)


def check_fit(state: State, network: nn.Module) -> None:
    """Checks that a state dict loads strictly into the network.

    Raises:
        ModelError: names or shapes differ; the message gives the first ones.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = [
        f"{name}: expected {expected.get(name, 'none')}, got {got.get(name, 'none')}"
        for name in dict.fromkeys([*expected, *got])
        if expected.get(name) != got.get(name)
    ]
    if differing:
        raise ModelError(
            f"weights do not fit the record in {len(differing)} tensors; first: "
            f"{'; '.join(differing[:3])}"
        )


def write_weights(tensors: State, folder: Path) -> Weights:
    """Writes `folder/weights.safetensors` atomically. Returns the entry for the record."""
    return write_verified(save(dict(tensors)), folder / WEIGHTS_FILE)


def load_network(record: ModelRecord, folder: Path) -> SegmentationNetwork:
    """The record's network with its weights and ranges from `folder`, in evaluation mode, float32
    on the CPU.

    Raises:
        ModelError: the record names no weights, a file is missing or broken, its SHA-256 differs
            from the record's, or the weights do not match the network.
    """
    network = build_network(record.architecture, len(record.classes))
    weights = named_weights(record)
    try:
        state = load_file(verified_file(weights, folder, "weights"))
    except SafetensorError as error:
        raise ModelError(f"{weights.file}: not a safetensors file: {error}") from error
    check_fit(state, network)
    network.load_state_dict(state, strict=True)  # half precision becomes float32
    network.ranges = read_ranges(record, folder)
    return network.eval()
