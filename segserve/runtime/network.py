"""Builds the network that a record describes and loads its weights, checked against the record."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deeplabv3 import CoreNetHead, DeepLabHead, MultiScaleDeepLabHead

from .errors import ModelError
from .record import Architecture, ModelRecord, sha256_of

# Levels of a backbone by their index in timm, which counts from 0 where CoreNet counts from 1.
_LAST_LEVEL, _LEVELS_2_TO_5 = (4,), (1, 2, 3, 4)


class SegmentationNetwork(nn.Module):
    """A backbone and a head.

    Shape: float (N, 3, H, W), RGB, normalised by the record's mean and std -> logits (N, classes, h, w), where
    h and w are the size of the level that the head works on: H and W by the output stride, rounded up, or by
    8 for the multi-scale head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = self.backbone(x)
        logits: Tensor = self.head(levels if len(levels) > 1 else levels[0])
        return logits


def build_network(architecture: Architecture, num_classes: int) -> SegmentationNetwork:
    """The network of that architecture with freshly drawn weights, in training mode.

    Raises:
        ModelError: timm has no such backbone, it lacks the levels or the stride asked for, or its channels do not fit
            the head.
    """
    levels = _LEVELS_2_TO_5 if architecture.head == "multiscale" else _LAST_LEVEL
    try:
        backbone: Any = timm.create_model(
            architecture.backbone,
            features_only=True,
            out_indices=levels,
            output_stride=architecture.output_stride,
        )
    except (RuntimeError, NotImplementedError, AssertionError, IndexError, TypeError) as error:
        raise ModelError(
            f"backbone {architecture.backbone}: timm cannot give its levels {levels} "
            f"at output stride {architecture.output_stride}: {error}"
        ) from error
    channels: list[int] = backbone.feature_info.channels()
    try:
        return SegmentationNetwork(backbone, _build_head(architecture, channels, num_classes))
    except ValueError as error:
        raise ModelError(f"head {architecture.head} on backbone {architecture.backbone}: {error}") from error


def _build_head(architecture: Architecture, channels: Sequence[int], num_classes: int) -> nn.Module:
    heads: dict[str, Callable[..., nn.Module]] = {
        "deeplabv3": DeepLabHead,
        "corenet": CoreNetHead,
        "multiscale": MultiScaleDeepLabHead,
    }
    return heads[architecture.head](
        channels if architecture.head == "multiscale" else channels[0],
        num_classes,
        architecture.aspp_rates,
        aspp_out_channels=architecture.aspp_out_channels,
        separable=architecture.aspp_sep_conv,
        dropout=architecture.aspp_dropout,
    )


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
