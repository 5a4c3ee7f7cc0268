"""Builds the network that a record describes and loads its weights, checked against the record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deeplabv3 import CoreNetHead, DeepLabHead, MultiScaleDeepLabHead

from .backbone import build_backbone
from .errors import ModelError
from .record import Architecture, ModelRecord, sha256_of


class SegmentationNetwork(nn.Module):
    """A backbone, a head, and for training an auxiliary head on the level before the last.

    Shape: float (N, 3, H, W), RGB, normalised by the record's mean and std -> logits (N, classes, h, w), where
    h and w are H and W by the architecture's `logits_stride`, rounded up.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, aux_head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self._is_multiscale = isinstance(head, MultiScaleDeepLabHead)

    def forward(self, x: Tensor) -> Tensor:
        """The head's logits; the auxiliary head is not computed."""
        return self._logits(self.backbone(x))

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the head and, at the size of its own level, those of the auxiliary head.

        Raises:
            ModelError: the architecture has no auxiliary head.
        """
        if self.aux_head is None:
            raise ModelError("the architecture has no auxiliary head: set aux_head in its record")
        levels: list[Tensor] = self.backbone(x)
        aux_logits: Tensor = self.aux_head(levels[-2])
        return self._logits(levels), aux_logits

    def _logits(self, levels: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(levels if self._is_multiscale else levels[-1])
        return logits


def build_network(architecture: Architecture, num_classes: int) -> SegmentationNetwork:
    """The network of that architecture with freshly drawn weights, in training mode.

    Raises:
        ModelError: there is no such backbone, it lacks the levels or the stride asked for, or its channels do not fit
            the head.
    """
    backbone, channels = build_backbone(architecture)
    try:
        head = _build_head(architecture, channels, num_classes)
        aux_head = FCNHead(channels[-2], num_classes) if architecture.aux_head else None
    except ValueError as error:
        raise ModelError(f"head {architecture.head} on backbone {architecture.backbone}: {error}") from error
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


def load_network(record: ModelRecord, folder: Path) -> SegmentationNetwork:
    """The record's network with its weights from `folder`, in evaluation mode, float32 on the CPU.

    Raises:
        ModelError: the weights are missing, have another SHA-256 than the record says, are not a safetensors
            file, or do not fit the network (the first names or shapes that differ are told).
    """
    network = build_network(record.architecture, len(record.classes))
    state = _read_weights(record, folder)
    expected = network.state_dict()
    misfits = [
        f"{name}: expected {_shape(expected.get(name))}, got {_shape(state.get(name))}"
        for name in sorted(expected.keys() | state.keys())
        if _shape(expected.get(name)) != _shape(state.get(name))
    ]
    if misfits:
        raise ModelError(f"weights do not fit the record in {len(misfits)} tensors; first: {'; '.join(misfits[:3])}")
    network.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, strict=True)
    return network.eval()


def _read_weights(record: ModelRecord, folder: Path) -> dict[str, Tensor]:
    if record.weights is None:
        raise ModelError(f"{record.name}: the record names no weights: train the model first")
    path = folder / record.weights.file
    if not path.is_file():
        raise ModelError(f"{record.weights.file}: the weights are missing")
    digest = sha256_of(path)
    if digest != record.weights.sha256:
        raise ModelError(f"{record.weights.file}: SHA-256 is {digest}, the record says {record.weights.sha256}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{record.weights.file}: not a safetensors file: {error}") from error


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
