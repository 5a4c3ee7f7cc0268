"""An archive's name, version and settings, and the management API's description of its model."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...runtime.errors import ModelError
from ...runtime.settings import CONFIG_FILE, ModelConfig, read_config
from ...signing import TrustedKeys
from ..errors import ServerError
from ..store import fill_store
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
        ModelError: an archive cannot be read, or two have the same model name.
        SignatureError: an archive is not signed by a trusted key.
    """
    archives = []
    for path in paths:
        if trusted is not None:
            trusted.verify(Path(path))
        archives.append(read_archive(Path(path)))
    names = [archive.name for archive in archives]
    if len(set(names)) < len(names):
        raise ModelError(f"two archives have the same model name: {', '.join(sorted(names))}")
    return archives


def read_archive(path: Path) -> ServedArchive:
    """Reads name, version and settings. Raises ModelError: they are missing or not valid."""
    try:
        with zipfile.ZipFile(path) as packed:
            model = json.loads(packed.read(MANIFEST))["model"]
            config = read_config(yaml.safe_load(packed.read(CONFIG_FILE)))
        return ServedArchive(
            path.resolve(), str(model["modelName"]), str(model["modelVersion"]), config
        )
    except OSError as error:
        raise ModelError(f"cannot read the archive {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ModelError(
            f"{path}: expected an archive made by `segserve archive`: "
            f"{' '.join(str(error).split())}"
        ) from error


def stored_archives(
    archives: Sequence[Path], run_dir: Path, *, trusted: TrustedKeys | None
) -> list[ServedArchive]:
    """Reads archives from a model store below the run folder.

    Raises:
        ServerError: an archive cannot be served.
        SignatureError: an archive is not signed by a trusted key.
    """
    store = run_dir / "model-store"
    names = fill_store(archives, store, trusted=trusted)
    try:
        return read_archives(store / f"{name}.mar" for name in names)
    except ModelError as error:
        raise ServerError(str(error)) from error


def describe(
    model: ServedArchive, workers: Sequence[str], customized: bytes | None
) -> dict[str, Any]:
    """`GET /models/{model}`, with the handler's own description if `customized` is given."""
    document: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.path.name,
        "runtime": "python",
        **model.config.model_dump(exclude={"handler"}, exclude_none=True),
        "workers": [{"id": str(number), "status": status} for number, status in enumerate(workers)],
    }
    if customized is not None:
        document["customizedMetadata"] = json.loads(customized)
    return document
