"""Checks that a state dict matches the network of a record. If not, finds an architecture that it
matches.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ..errors import ModelError
from ..record import Architecture, ModelRecord
from .build import build_network

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
            line = yaml.safe_dump(
                fields, default_flow_style=True, sort_keys=False, width=10**6
            ).strip()
            return (
                f"They fit a record with {num_classes} classes (here {len(record.classes)}) and "
                f"architecture: {line}"
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
        rates = (
            base.aspp_rates
            if len(base.aspp_rates) == num_rates
            else [step * (n + 1) for n in range(num_rates)]
        )
        fields = {**head, "output_stride": base.output_stride, "aspp_rates": rates}
        for use_l5_exp in (False, True):
            yield Architecture(backbone=base.backbone, use_l5_exp=use_l5_exp, **fields), num_classes


def _head(state: State) -> tuple[dict[str, Any], int, int] | None:
    """What the tensors show of one of our heads: fields of the record, number of rates, number of
    classes.
    """
    fuse = state.get("head.fuse.0.weight")
    kind = (
        "multiscale" if fuse is not None else "deeplabv3" if "head.4.weight" in state else "corenet"
    )
    prefix = "head.head" if kind == "multiscale" else "head"
    project = state.get(f"{prefix}.0.project.0.weight")
    classifier = state.get(f"{prefix}.4.weight" if kind == "deeplabv3" else f"{prefix}.1.weight")
    if project is None or classifier is None or project.ndim != 4 or 0 in project.shape:
        return None
    num_rates = project.shape[1] // project.shape[0] - 2  # the other two branches: 1x1 and pooling
    third_layer = state.get(
        f"{prefix}.0.convs.1.2.weight"
    )  # separable: depthwise, pointwise, norm; else: kernel, norm
    fields: dict[str, Any] = {
        "head": kind,
        "aux_head": "aux_head.0.weight" in state,
        "aspp_out_channels": project.shape[0],
        "aspp_sep_conv": num_rates > 0 and third_layer is not None,
    }
    if fuse is not None:
        fields["aspp_in_channels"] = fuse.shape[0]
    return fields, num_rates, classifier.shape[0]
