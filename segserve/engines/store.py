"""The model store of one run: a folder with the archives to serve, named after their models."""

import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ServerError

if TYPE_CHECKING:
    from ..signing import TrustedKeys


def fill_store(
    archives: Sequence[Path], store: Path, *, trusted: "TrustedKeys | None" = None
) -> tuple[str, ...]:
    """Make `store` hold just these archives, as NAME.mar, and return the names in order.

    With `trusted`, an archive is verified before anything else of it is read, and the store holds
    the very bytes that were verified.

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
        _link_or_copy(archive.resolve(), target) if trusted is None else archive.rename(target)
    return names


def model_name(archive: Path) -> str:
    """The name of an archive's model. Raises ServerError: it is not a model archive."""
    if not archive.is_file():
        raise ServerError(f"there is no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as content:
            name = str(json.loads(content.read("MAR-INF/MANIFEST.json"))["model"]["modelName"])
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{archive} is not a model archive (.mar): {error}") from error
    if not re.fullmatch(r"\w[\w.-]*", name):  # it is part of a file's name and of a command
        raise ServerError(
            f"{archive}: the model's name must be letters, digits, dots and dashes, got {name!r}"
        )
    return name


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
