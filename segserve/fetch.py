"""Published models: downloads a checkpoint, checks it, and makes a model folder of it.

The record of such a model is in the repository. Its weights lie with a completed copy of the record
in `$SEGSERVE_HOME/models/NAME`, by default in `~/.cache/segserve`. Only `segserve fetch` downloads,
and `segserve train --backbone-weights timm` (or `torchvision`), with the code of that package.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from .client.response import root_reason
from .resources import fetched_models, model_source, require_packages
from .runtime.errors import FetchError, ModelError
from .runtime.files import whole_file
from .runtime.record import (
    RECORD_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    ModelRecord,
    Weights,
    read_record,
    sha256_of,
    write_record,
)

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[[int, int | None], None]

_ATTEMPTS = 5
_BLOCK_BYTES = 2**14  # a connection that breaks takes with it what has arrived of a block
_TIMEOUT_S = (10, 60)  # to connect, and from one byte to the next

# What `fetch_model`, `segserve quantize`, `evaluate --write` and `calibrate` write to a record.
_MADE_HERE = ("weights", "int8", "accuracy", "calibration")

MIRROR_VARIABLE = "SEGSERVE_MIRROR"


def model_named(model: str) -> Path:
    """The `servable_folder` of a model: a folder, or the name of one in `model/`. Raises
    FileNotFoundError if there is no such model.
    """
    return servable_folder(model_source(model))


def servable_folder(model: Path) -> Path:
    """The folder with the weights of a model: its own, or that which `fetch_model` made.
    Raises ModelError if they are yet to be fetched.
    """
    record = read_record(model)
    if record.weights or not record.checkpoint:
        return model
    folder, name = _fetched_folder(model), model.resolve().name
    if not (folder / RECORD_FILE).exists():
        raise ModelError(
            f"{name}: its weights are not in the repository: `segserve fetch {name}` downloads them"
        )
    if _published(read_record(folder)) != _published(record):
        raise ModelError(
            f"{name}: its record has changed since it was fetched: `segserve fetch {name}` renews "
            "it"
        )
    return folder


def fetch_model(model: Path, *, weights: Path | None, report: Report) -> Path:
    """Makes a published model ready to be served, and returns the folder that it is served from.

    A model that is ready is not downloaded again, and keeps what was measured with its weights.

    Args:
        weights: the published file, in place of the download.
        report: see `download`.

    Raises:
        ModelError: there is nothing to fetch, or the weights do not fit the record.
        FetchError: the checkpoint cannot be had, or is not the published one.
    """
    require_packages("torch")
    record = read_record(model)
    if record.checkpoint is None:
        if weights is not None or record.weights is None:
            raise ModelError(
                f"{record.name}: the record names no checkpoint: `segserve import` makes a model "
                "of a file of your own, `segserve train` trains one"
            )
        return model
    folder = _fetched_folder(model)
    if weights is None and _has_weights(folder, record):
        present = read_record(folder)
        made = {name: getattr(present, name) or getattr(record, name) for name in _MADE_HERE}
    else:
        written = _fetched_weights(record, record.checkpoint, folder, weights, report)
        made = {"weights": written, "int8": None}
    write_record(record.model_copy(update=made), folder)
    if (model / "README.md").exists():
        shutil.copyfile(model / "README.md", folder / "README.md")
    return folder


def _published(record: ModelRecord) -> ModelRecord:
    """The parts of a record that only its publisher changes."""
    return record.model_copy(update=dict.fromkeys(_MADE_HERE))


def _fetched_folder(model: Path) -> Path:
    return fetched_models() / model.resolve().name


def _has_weights(folder: Path, record: ModelRecord) -> bool:
    """Whether `folder` has whole weights of the record's checkpoint and architecture."""
    try:
        fetched = read_record(folder)
    except ModelError:
        return False
    path = folder / WEIGHTS_FILE
    return (
        (fetched.checkpoint, fetched.architecture) == (record.checkpoint, record.architecture)
        and fetched.weights is not None
        and path.exists()
        and sha256_of(path) == fetched.weights.sha256
    )


def _fetched_weights(
    record: ModelRecord, checkpoint: Checkpoint, folder: Path, weights: Path | None, report: Report
) -> Weights:
    from .runtime.network import write_weights

    path = weights or folder / checkpoint.file
    if not weights and not path.exists():
        _download(checkpoint, path, report)
    elif (digest := sha256_of(path)) != checkpoint.sha256:
        _read_fitting(path, record)  # reports weights of another architecture
        raise FetchError(
            f"{path}: SHA-256 is {digest}, that of {checkpoint.file} is {checkpoint.sha256}. "
            "`segserve import` makes a model of weights of your own"
        )
    state = _read_fitting(path, record)
    folder.mkdir(parents=True, exist_ok=True)
    written = write_weights(state, folder)
    (folder / checkpoint.file).unlink(missing_ok=True)
    return written


def _download(checkpoint: Checkpoint, path: Path, report: Report) -> None:
    base_url = os.environ.get(MIRROR_VARIABLE) or checkpoint.base_url
    url = f"{base_url.rstrip('/')}/{checkpoint.file}"
    max_bytes = int((checkpoint.size_mib + 1) * 2**20)
    try:
        download(url, path, sha256=checkpoint.sha256, max_bytes=max_bytes, report=report)
    except FetchError as error:
        raise FetchError(
            f"{error}. Without internet: bring {checkpoint.base_url}{checkpoint.file} to {path} "
            "and fetch again, or name the file with --weights, or the address of a folder that has "
            f"it in {MIRROR_VARIABLE}"
        ) from error


def _read_fitting(path: Path, record: ModelRecord) -> "dict[str, Tensor]":
    import torch

    from .importing.model import load_checkpoint
    from .runtime.network import build_network, check_fit

    loaded = load_checkpoint(path).state
    state = {
        # torchvision's `classifier` and `aux_classifier` are our `head` and `aux_head`
        re.sub(r"^(aux_)?classifier\.", r"\1head.", name): tensor.clone(
            memory_format=torch.contiguous_format
        )
        for name, tensor in loaded.items()
    }
    check_fit(state, build_network(record.architecture, len(record.classes)))
    return state


def download(url: str, target: Path, *, sha256: str, max_bytes: int, report: Report) -> None:
    """Downloads `url` to `target`, which appears when it is whole. After a broken connection, the
    next one goes on from there, as long as each one brings something.

    Args:
        max_bytes: the download ends with an error if the server sends more.
        report: receives the number of bytes that are there and, if the server reports it, of all.

    Raises:
        FetchError: the server cannot be reached, rejects the request, or breaks off repeatedly, or
            the file has another SHA-256.
        OSError: the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with whole_file(target) as file:
        for attempt in range(_ATTEMPTS):
            before_bytes = file.tell()
            try:
                for block in _blocks(url, before_bytes, max_bytes, report):
                    file.write(block)
                    digest.update(block)
                break
            except requests.RequestException as error:
                if file.tell() == before_bytes or attempt == _ATTEMPTS - 1:
                    raise FetchError(f"{url}: {root_reason(error)}") from error
        if digest.hexdigest() != sha256:
            raise FetchError(
                f"{url}: SHA-256 is {digest.hexdigest()}, the record says {sha256}; what arrived "
                "is deleted"
            )


def _blocks(url: str, present_bytes: int, max_bytes: int, report: Report) -> Iterator[bytes]:
    """The rest of a file of which `present_bytes` are there."""
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes that are sent
    if present_bytes:
        headers["Range"] = f"bytes={present_bytes}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        expected = requests.codes.partial_content if present_bytes else requests.codes.ok
        content_range = response.headers.get("Content-Range", f"bytes {present_bytes}-")
        continues = content_range.startswith(f"bytes {present_bytes}-")
        if response.status_code != expected or not continues:
            raise FetchError(
                f"{response.url}: the server returned {response.status_code} {response.reason}"
            )
        length = response.headers.get("Content-Length", "")
        total_bytes = present_bytes + int(length) if length.isdigit() else None
        report(present_bytes, total_bytes)
        for block in response.iter_content(_BLOCK_BYTES):
            present_bytes += len(block)
            if max(present_bytes, total_bytes or 0) > max_bytes:
                raise FetchError(
                    f"{url}: sends more than {max_bytes} bytes, which the file does not have"
                )
            yield block
            report(present_bytes, total_bytes)
