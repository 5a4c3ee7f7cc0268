"""The record of a model that is still to be trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...runtime.errors import ModelError
from ...runtime.network.build import build_network
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


def prepare_model(
    folder: Path,
    architecture: Mapping[str, object],
    classes: Sequence[ClassInfo] | None,
    *,
    size_px: int,
    licence: str,
) -> ModelRecord:
    """The folder's record, or a new one that is written into it.

    Args:
        architecture: what is asked of a new model; a folder that has its record may be asked for
            what that says.
        size_px: longer side at which a new model's network sees an image.

    Raises:
        ModelError: the folder's record is broken or says otherwise, the new model lacks classes or
            a backbone, or the backbone cannot give what the head needs.
    """
    if not (folder / RECORD_FILE).exists():
        return _create(folder, architecture, classes, size_px, licence)
    record = read_record(folder)
    asked = validated({**record.architecture.model_dump(), **architecture}, Architecture, "flags")
    differing = [
        name for name in architecture if getattr(asked, name) != getattr(record.architecture, name)
    ]
    if classes and tuple(classes) != record.classes:
        differing.append("classes")
    if differing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
        raise ModelError(
            f"{folder / RECORD_FILE} says otherwise than {flags}: leave that out, or give a new "
            "folder"
        )
    return record


def _create(
    folder: Path,
    architecture: Mapping[str, object],
    classes: Sequence[ClassInfo] | None,
    size_px: int,
    licence: str,
) -> ModelRecord:
    if classes is None or "backbone" not in architecture:
        raise ModelError(
            f"{folder} holds no {RECORD_FILE}: a new model needs --classes and --backbone"
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
    record = validated(fields, ModelRecord, RECORD_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(record, folder)
    return record


def _normalization(backbone: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that the backbone's published weights were trained with, or else
    ImageNet's.
    """
    published = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    return (
        (published.mean, published.std)
        if published
        else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
