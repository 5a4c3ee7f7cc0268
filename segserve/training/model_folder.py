"""The model folder in training: the record of a new model, the weights that its backbone starts
from, and the trained weights.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..importing.model import load_checkpoint
from ..runtime.errors import ModelError
from ..runtime.network import (
    SegmentationNetwork,
    build_network,
    load_network,
    write_weights,
)
from ..runtime.record import (
    RECORD_FILE,
    Architecture,
    ClassInfo,
    InputRule,
    ModelRecord,
    read_record,
    validated,
    write_record,
)

_SIZE_PX, _SIZE_MULTIPLE = 448, 32
_CLASSIFIER_TENSORS = 2


def record_for(
    folder: Path,
    architecture: Mapping[str, object],
    classes: Sequence[ClassInfo] | None,
    *,
    size_px: int | None,
    licence: str | None,
    start: Path | None = None,
) -> ModelRecord:
    """The record of the folder, or of a new model. Nothing is written.

    Args:
        start: the folder of the model that a new one starts from; it has its architecture, its
            input rule, and its classes unless there are others.
        architecture: fields of a new model's architecture. Those of an existing record must agree.
        size_px: longer side of an image at the input of a new model's network; None for the
            default, or for the size of `start`. That of an existing record must agree.
        licence: of a new model's weights. That of an existing record must agree.

    Raises:
        ModelError: the folder's record is broken or disagrees, the new model lacks classes or a
            backbone, or the backbone does not have what the head needs.
    """
    if (folder / RECORD_FILE).exists():
        return _existing_record(folder, architecture, classes, size_px, licence)
    source = "segserve train"
    if start is not None:
        other = read_record(start)
        checked, rule = _same_architecture(other, architecture), other.input
        classes = classes or other.classes
        source += f", from {other.name} {other.version}: {other.source}"
    elif classes is None or "backbone" not in architecture:
        raise ModelError(
            f"{folder} has no {RECORD_FILE}: a new model needs --classes and --backbone"
        )
    else:
        checked = validated(dict(architecture), Architecture, "flags")
        build_network(checked, len(classes))
        rule = _input_rule(checked.backbone)
    if size_px is not None:
        resize = rule.resize.model_copy(update={"size_px": size_px})
        rule = rule.model_copy(update={"resize": resize})
    fields = {
        "name": folder.resolve().name,
        "version": "1.0",
        "summary": f"DeepLabV3 ({checked.head} head) on {checked.backbone}, {len(classes)} classes",
        "licence": licence or "not stated",
        "source": source,
        "architecture": checked,
        "input": rule,
        "classes": tuple(classes),
    }
    return validated(fields, ModelRecord, RECORD_FILE)


def _existing_record(
    folder: Path,
    architecture: Mapping[str, object],
    classes: Sequence[ClassInfo] | None,
    size_px: int | None,
    licence: str | None,
) -> ModelRecord:
    record = read_record(folder)
    known = record.architecture
    requested = validated({**known.model_dump(), **architecture}, Architecture, "flags")
    differing = [name for name in architecture if getattr(requested, name) != getattr(known, name)]
    known_others = {
        "classes": (classes and tuple(classes), record.classes),
        "size_px": (size_px, record.input.resize.size_px),
        "licence": (licence, record.licence),
    }
    differing += [name for name, (given, own) in known_others.items() if given and given != own]
    if differing:
        raise ModelError(
            f"{folder / RECORD_FILE} does not agree with {_flags(differing)}: leave that out, or "
            "give a new folder"
        )
    return record


def _same_architecture(start: ModelRecord, architecture: Mapping[str, object]) -> Architecture:
    known = start.architecture.model_copy(update={"aux_head": False})
    requested = validated({**known.model_dump(), **architecture}, Architecture, "flags")
    if requested != known:
        raise ModelError(
            f"a model that starts from {start.name} has its architecture: leave out "
            f"{_flags(architecture)}"
        )
    return requested


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _input_rule(backbone: str) -> InputRule:
    """With mean and standard deviation of the backbone's published weights, or ImageNet's."""
    published = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    fields = {
        "resize": {"size_px": _SIZE_PX, "multiple_of": _SIZE_MULTIPLE},
        "mean": published.mean if published else IMAGENET_DEFAULT_MEAN,
        "std": published.std if published else IMAGENET_DEFAULT_STD,
    }
    return validated(fields, InputRule, "input")


def write_new_record(record: ModelRecord, folder: Path) -> None:
    """Writes the record into the folder, unless the folder has one already."""
    if not (folder / RECORD_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_record(record, folder)


def load_start(network: SegmentationNetwork, record: ModelRecord, start: Path) -> None:
    """Loads the weights of another model, in place. A classifier with other classes than those of
    the record keeps its random values. Raises ModelError if the other model has another
    architecture.
    """
    other = read_record(start)
    given, own = load_network(other, start).state_dict(), network.state_dict()
    if other.labels != record.labels:
        for name in [name for name in own if name.startswith("head.")][-_CLASSIFIER_TENSORS:]:
            del own[name]
    shapes = {name: tensor.shape for name, tensor in given.items()}
    differing = [name for name, tensor in own.items() if shapes.get(name) != tensor.shape]
    if differing:
        raise ModelError(
            f"{start}: has another architecture than the model to train; first: {differing[0]}"
        )
    network.load_state_dict({name: given[name] for name in own}, strict=False)


def load_backbone(backbone: nn.Module, name: str, source: str) -> None:
    """Loads pretrained weights into a backbone, in place; `source` as in `Recipe.backbone_weights`.
    Raises ModelError if the source cannot be had, or lacks a tensor of the backbone.
    """
    if source == "none":
        return
    state = _renamed_for(backbone, _published_state(name, source))
    missing = backbone.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ModelError(
            f"{source}: lacks {len(missing)} tensors of backbone {name}, first: {missing[0]}"
        )


def _renamed_for(backbone: nn.Module, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the backbone's own names.

    timm makes a backbone from a classifier either by wrapping it (`model.stages.0...`) or by moving
    its stages to the top (`stages_0...`). torchvision's mobilenets are `features` and a classifier.
    """
    own = backbone.state_dict().keys()
    aliased = {
        alias: tensor
        for name, tensor in published.items()
        for alias in (
            name,
            f"model.{name}",
            name.replace(".", "_", 1),
            name.removeprefix("features."),
        )
    }
    return {name: aliased[name] for name in own & aliased.keys()}


def _published_state(name: str, source: str) -> Mapping[str, Tensor]:
    if source not in ("timm", "torchvision"):
        return load_checkpoint(Path(source)).state
    torchvision_name = name.removeprefix("torchvision.")
    if (source == "torchvision") != (torchvision_name != name):
        other = "torchvision" if source == "timm" else "timm"
        raise ModelError(
            f"backbone {name}: its weights come from {other}: --backbone-weights {other}"
        )
    try:
        if source == "timm":
            return timm.create_model(name, pretrained=True).state_dict()
        weights: Any = torchvision.models.get_model_weights(torchvision_name)
        state: Mapping[str, Tensor] = weights.DEFAULT.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # of the network, of the cache, or of a backbone without weights
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"backbone {name}: {source} cannot give its weights ({reason}); name a file with "
            "--backbone-weights, or start from a model with --start"
        ) from error
    return state


def export_weights(network: nn.Module, record: ModelRecord, folder: Path) -> ModelRecord:
    """Writes `folder/weights.safetensors`, in half precision, and `folder/model.yaml`.

    Accuracy, calibration and activation ranges of earlier weights are removed from the record,
    which is returned. Raises ValueError if a weight is not finite in half precision.
    """
    weights = write_weights(_halved(network), folder)
    trained = record.model_copy(
        update={"weights": weights, "accuracy": None, "calibration": None, "int8": None}
    )
    write_record(trained, folder)
    return trained


def exported_sha256(network: nn.Module) -> str:
    """The SHA-256 of the weights that `export_weights` writes. Raises as it does."""
    return hashlib.sha256(save(_halved(network))).hexdigest()


def _halved(network: nn.Module) -> dict[str, Tensor]:
    return {name: _in_half_precision(name, tensor) for name, tensor in network.state_dict().items()}


def _in_half_precision(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.to(torch.float16)
    if not halved.isfinite().all():
        raise ValueError(
            f"{name}: holds values that are not finite, or above {torch.finfo(torch.float16).max}"
        )
    return halved
