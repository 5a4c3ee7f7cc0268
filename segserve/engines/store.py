"""The archives to serve: their names, versions and settings, and the model store of one run."""

import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..runtime.errors import ModelError
from ..runtime.settings import CONFIG_FILE, ModelConfig, read_config
from . import ServerError

if TYPE_CHECKING:
    from ..signing import TrustedKeys

MODEL_STORE = "model-store"
"""The name of the folder with the archives, inside the folder of an engine."""

_MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class ServedArchive:
    """An archive, before it is unpacked."""

    path: Path
    name: str
    version: str
    config: ModelConfig


def read_archive(path: Path) -> ServedArchive:
    """Reads name, version and settings. Raises ServerError: they are missing or not valid."""
    name = model_name(path)
    try:
        with zipfile.ZipFile(path) as packed:
            version = json.loads(packed.read(_MANIFEST))["model"]["modelVersion"]
            config = read_config(yaml.safe_load(packed.read(CONFIG_FILE)))
    except (KeyError, ValueError, yaml.YAMLError, ModelError) as error:
        raise ServerError(
            f"{path}: expected an archive made by `segserve archive`: "
            f"{' '.join(str(error).split())}"
        ) from error
    return ServedArchive(path.resolve(), name, str(version), config)


def stored_archives(
    archives: Sequence[Path], run_dir: Path, *, trusted: "TrustedKeys | None"
) -> list[ServedArchive]:
    """Reads archives from a model store below the run folder. Raises as `fill_store`."""
    store = run_dir / MODEL_STORE
    names = fill_store(archives, store, trusted=trusted)
    return [read_archive(store / f"{name}.mar") for name in names]


def fill_store(
    archives: Sequence[Path], store: Path, *, trusted: "TrustedKeys | None" = None
) -> tuple[str, ...]:
    """Makes `store` hold just these archives, as NAME.mar, and returns the names in order.

    With `trusted`, an archive is verified before anything else of it is read, and the store holds
    the very bytes that were verified. Otherwise, it holds symbolic links.

    Raises:
        ServerError: there is no archive, a file is none, or two have the same name.
        SignatureError: an archive is not signed by a trusted key.
    """
    if not archives:
        raise ServerError("there is no archive to serve; make one with: segserve archive")
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    if trusted is not None:
        verified = [store / f"{index}.verified" for index in range(len(archives))]
        for archive, copy in zip(archives, verified, strict=True):
            trusted.copy(archive, copy)
        archives = verified
    names = tuple(model_name(archive) for archive in archives)
    if len(set(names)) < len(names):
        raise ServerError(f"two archives have the same model name: {', '.join(sorted(names))}")
    for name, archive in zip(names, archives, strict=True):
        target = store / f"{name}.mar"
        target.symlink_to(archive.resolve()) if trusted is None else archive.rename(target)
    return names


def model_name(archive: Path) -> str:
    """The name of an archive's model. Raises ServerError: it is not a model archive."""
    if not archive.is_file():
        raise ServerError(f"there is no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as content:
            name = str(json.loads(content.read(_MANIFEST))["model"]["modelName"])
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{archive} is not a model archive (.mar): {error}") from error
    if not re.fullmatch(r"\w[\w.-]*", name):  # it is part of a file's name and of a command
        raise ServerError(
            f"{archive}: the model's name must be letters, digits, dots and dashes, got {name!r}"
        )
    return name
