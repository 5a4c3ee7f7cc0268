"""Builds a record's network, and reads and writes its weights."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deeplabv3 import CoreNetHead, DeepLabHead, DeepLabV3PlusHead, MultiScaleDeepLabHead

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
from .ranges import Ranges, read_ranges

State = Mapping[str, Tensor]

_RATES = (12, 24, 36)
_PUBLISHED = (
    Architecture(backbone="torchvision.resnet50", output_stride=8, aspp_rates=_RATES),
    Architecture(backbone="torchvision.resnet101", output_stride=8, aspp_rates=_RATES),
    Architecture(backbone="torchvision.mobilenet_v3_large", output_stride=16, aspp_rates=_RATES),
)


def check_fit(state: State, network: nn.Module, record: ModelRecord) -> None:
    """Checks that a state dict loads strictly into the record's network.

    Raises:
        ModelError: names or shapes differ. The message gives the first ones, and the architecture
            that matches, if found.
    """
    differing = _differing(state, network)
    if differing:
        raise ModelError(
            f"weights do not fit the record in {len(differing)} tensors; first: "
            f"{'; '.join(differing[:3])}. "
            f"{_advice(state, record)}"
        )


def _differing(state: State, network: nn.Module) -> list[str]:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [
        f"{name}: expected {expected.get(name, 'none')}, got {got.get(name, 'none')}"
        for name in dict.fromkeys([*expected, *got])
        if expected.get(name) != got.get(name)
    ]


def _advice(state: State, record: ModelRecord) -> str:
    for architecture, num_classes in _candidates(state, record.architecture):
        if _fits(state, architecture, num_classes):
            fields = architecture.model_dump(
                mode="json", exclude_defaults=True, exclude={"aspp_dropout"}
            )
            line = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=10**6)
            return (
                f"They fit a record with {num_classes} classes (here {len(record.classes)}) and "
                f"architecture: {line.strip()}"
            )
    return (
        f"They fit no head of deeplabv3.py on {record.architecture.backbone} or on torchvision's "
        "backbones"
    )


def _fits(state: State, architecture: Architecture, num_classes: int) -> bool:
    try:
        with torch.device("meta"):  # names and shapes only
            network = build_network(architecture, num_classes)
    except ModelError:
        return False
    return not _differing(state, network)


def _candidates(state: State, own: Architecture) -> Iterator[tuple[Architecture, int]]:
    """Yields architectures with the head that the tensors show, and the number of classes.

    The tensors show neither the output stride nor the rates. With the record's backbone, both come
    from `own`. With the other backbones, both come from torchvision's checkpoints.
    """
    shown = _head(state)
    if shown is None:
        return
    head, num_rates, num_classes = shown
    for base in (own, *_PUBLISHED):
        step, *_ = base.aspp_rates or (6,)
        rates = list(base.aspp_rates)
        if len(rates) != num_rates:
            rates = [step * (n + 1) for n in range(num_rates)]
        fields = {**head, "output_stride": base.output_stride, "aspp_rates": rates}
        for use_l5_exp in (False, True):
            yield Architecture(backbone=base.backbone, use_l5_exp=use_l5_exp, **fields), num_classes


def _head(state: State) -> tuple[dict[str, Any], int, int] | None:
    """What the tensors show: fields of the record, number of rates, number of classes."""
    fuse = state.get("head.fuse.0.weight")
    single_level = "deeplabv3" if "head.4.weight" in state else "corenet"
    kind = single_level if fuse is None else "multiscale"
    prefix = "head.head" if kind == "multiscale" else "head"
    project = state.get(f"{prefix}.0.project.0.weight")
    classifier = state.get(f"{prefix}.4.weight" if kind == "deeplabv3" else f"{prefix}.1.weight")
    if project is None or classifier is None or project.ndim != 4 or 0 in project.shape:
        return None
    num_rates = project.shape[1] // project.shape[0] - 2  # the other two branches: 1x1 and pooling
    # The third layer of separable branches is the norm; others have the kernel and the norm alone.
    third_layer = state.get(f"{prefix}.0.convs.1.2.weight")
    fields: dict[str, Any] = {
        "head": kind,
        "aux_head": "aux_head.0.weight" in state,
        "aspp_out_channels": project.shape[0],
        "aspp_sep_conv": num_rates > 0 and third_layer is not None,
    }
    if fuse is not None:
        fields["aspp_in_channels"] = fuse.shape[0]
    return fields, num_rates, classifier.shape[0]


class SegmentationNetwork(nn.Module):
    """A backbone, a head, and an auxiliary head if a published checkpoint has one.

    The auxiliary head is never computed.

    Shape: float (N, 3, H, W), RGB, normalised by the record's mean and std -> logits (N, classes,
        h, w). h and w are H and W divided by the architecture's `logits_stride`, rounded up.

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
        self._reads_levels = isinstance(head, MultiScaleDeepLabHead | DeepLabV3PlusHead)
        self.ranges: Ranges = {}

    def forward(self, x: Tensor) -> Tensor:
        """The head's logits. The auxiliary head is not computed."""
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


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> Weights:
    """Writes `folder/weights.safetensors` atomically. Returns the entry for the record."""
    return write_verified(save(dict(tensors)), folder / WEIGHTS_FILE)


def load_network(record: ModelRecord, folder: Path) -> SegmentationNetwork:
    """The record's network with its weights and ranges from `folder`, in evaluation mode, float32
    on the CPU.

    Raises:
        ModelError: the record names no weights. A file is missing, its SHA-256 differs from the
            record's, or it is not a safetensors file. Or the weights do not match the network; the
            message gives the first names or shapes that differ.
    """
    network = build_network(record.architecture, len(record.classes))
    state = _read(named_weights(record), folder)
    check_fit(state, network, record)
    expected = network.state_dict()
    network.load_state_dict(
        {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, strict=True
    )
    network.ranges = read_ranges(record, folder)
    return network.eval()


def _read(weights: Weights, folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(verified_file(weights, folder, "weights"))
    except SafetensorError as error:
        raise ModelError(f"{weights.file}: not a safetensors file: {error}") from error
