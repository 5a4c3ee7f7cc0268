"""Reads what must be known about an archive before it is deployed, without unpacking it."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...runtime.errors import ModelError
from ...runtime.settings import CONFIG_FILE, ModelConfig, read_config
from ...signing import TrustedKeys
from .loading import MANIFEST


@dataclass(frozen=True)
class Archive:
    path: Path
    name: str
    version: str
    config: ModelConfig


def read_archive(path: Path, *, trusted: TrustedKeys | None = None) -> Archive:
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
            return Archive(
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
