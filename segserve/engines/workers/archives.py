"""An archive's name, version and settings, and the management API's description of its model."""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from ...runtime.errors import ModelError
from ...runtime.settings import CONFIG_FILE, ModelConfig, read_config
from ...signing import TrustedKeys
from .loading import MANIFEST


@dataclass(frozen=True)
class ServedArchive:
    """An archive, before it is unpacked."""

    path: Path
    name: str
    version: str
    config: ModelConfig


def read_archives(
    paths: Iterable[str | Path], *, trusted: TrustedKeys | None = None
) -> list[ServedArchive]:
    """Reads several archives, see `read_archive`.

    Raises:
        ModelError: as `read_archive`, or two archives have the same model name.
        SignatureError: as `read_archive`.
    """
    archives = [read_archive(Path(path), trusted=trusted) for path in paths]
    names = [archive.name for archive in archives]
    if len(set(names)) < len(names):
        raise ModelError(f"two archives have the same model name: {', '.join(sorted(names))}")
    return archives


def read_archive(path: Path, *, trusted: TrustedKeys | None = None) -> ServedArchive:
    """Reads an archive's name, version and settings.

    Raises:
        ModelError: the file is missing or is not an archive, or its settings are invalid.
        SignatureError: `trusted` is given, and none of its keys has signed the archive.
    """
    if trusted is not None:
        trusted.verify(path)
    try:
        with zipfile.ZipFile(path) as packed:
            model = json.loads(packed.read(MANIFEST))["model"]
            config = yaml.safe_load(packed.read(CONFIG_FILE))
            return ServedArchive(
                path.resolve(),
                str(model["modelName"]),
                str(model["modelVersion"]),
                read_config(config),
            )
    except OSError as error:
        raise ModelError(f"cannot read the archive {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ModelError(
            f"{path}: expected an archive made by `segserve archive`: "
            f"{' '.join(str(error).split())}"
        ) from error


@dataclass(frozen=True)
class ModelEntry:
    """What the HTTP application knows about a model."""

    name: str
    version: str
    file: str
    config: Mapping[str, int]

    @classmethod
    def of(cls, archive: ServedArchive) -> Self:
        numbers = archive.config.model_dump(exclude={"handler"}, exclude_none=True)
        return cls(archive.name, archive.version, archive.path.name, numbers)


def listed(models: Iterable[ModelEntry]) -> dict[str, Any]:
    """`GET /models`."""
    return {"models": [{"modelName": model.name, "modelUrl": model.file} for model in models]}


def describe(model: ModelEntry, workers: Sequence[str], customized: bytes | None) -> dict[str, Any]:
    """`GET /models/{model}`, with the handler's own description if `customized` is given.

    Args:
        workers: the status of every worker, in TorchServe's terms.
    """
    document: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.file,
        "runtime": "python",
        **model.config,
        "workers": [{"id": str(number), "status": status} for number, status in enumerate(workers)],
    }
    if customized is not None:
        document["customizedMetadata"] = json.loads(customized)
    return document
