"""Published models: downloads a checkpoint, checks it, and makes a model folder of it.

The record of such a model is in the repository. Its weights lie with a completed copy of the record
in `$SEGSERVE_HOME/models/NAME`, by default in `~/.cache/segserve`. Only `segserve fetch` downloads.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import requests

from .client.errors import root_reason
from .resources import fetched_models, model_source, require_packages
from .runtime.errors import FetchError, ModelError
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
    fetched = read_record(folder).model_copy(update={"weights": None, "int8": None})
    if fetched != record:
        raise ModelError(
            f"{name}: its record has changed since it was fetched: `segserve fetch {name}` renews "
            "it"
        )
    return folder


def fetch_model(model: Path, *, weights: Path | None, report: Report) -> Path:
    """Makes a published model ready to be served, and returns the folder that it is served from.

    A model that is ready is left as it is, and its checkpoint not downloaded again.

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
        ready = {"weights": present.weights, "int8": present.int8}
    else:
        made = _fetched_weights(record, record.checkpoint, folder, weights, report)
        ready = {"weights": made, "int8": None}
    write_record(record.model_copy(update=ready), folder)
    if (model / "README.md").exists():
        shutil.copyfile(model / "README.md", folder / "README.md")
    return folder


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
    from .runtime.network.weights import write_weights

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
    from .runtime.network.weights import build_network, check_fit

    loaded = load_checkpoint(path).state
    state = {
        # torchvision's `classifier` and `aux_classifier` are our `head` and `aux_head`
        re.sub(r"^(aux_)?classifier\.", r"\1head.", name): tensor.clone(
            memory_format=torch.contiguous_format
        )
        for name, tensor in loaded.items()
    }
    check_fit(state, build_network(record.architecture, len(record.classes)), record)
    return state


def download(url: str, target: Path, *, sha256: str, max_bytes: int, report: Report) -> None:
    """Downloads `url` to `target`. What has arrived is kept in `target` + `.part`, also by a killed
    process, and the next call goes on from there. The hash alone decides whether the parts belong
    together, so that they may come from different mirrors.

    Args:
        max_bytes: a server that sends more is not heard out.
        report: receives the number of bytes that are there and, if the server reports it, of all.

    Raises:
        FetchError: the server cannot be reached, rejects the request, or breaks off repeatedly;
            the file cannot be written, or has another SHA-256 and is deleted.
        OSError: the folder cannot be written to.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchError(
                f"{part}: another process is downloading it: wait for it to end"
            ) from error
        _receive_all(url, file, max_bytes, report)
        digest = sha256_of(part)
        if digest != sha256:
            part.unlink()
            raise FetchError(
                f"{url}: SHA-256 is {digest}, the record says {sha256}; what arrived is deleted"
            )
        part.replace(target)


def _receive_all(url: str, file: BinaryIO, max_bytes: int, report: Report) -> None:
    """Receives the rest of the file. Connects again as long as each connection brings something."""
    for attempt in range(_ATTEMPTS):
        before_bytes = file.tell()
        try:
            _receive(url, file, max_bytes, report)
        except requests.RequestException as error:
            if file.tell() == before_bytes or attempt == _ATTEMPTS - 1:
                raise FetchError(f"{url}: {root_reason(error)}{_kept(file)}") from error
        else:
            return


def _receive(url: str, file: BinaryIO, max_bytes: int, report: Report) -> None:
    present_bytes = file.seek(0, 2)
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes that are sent
    if present_bytes:
        headers["Range"] = f"bytes={present_bytes}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and present_bytes:
            return  # nothing comes after what is there
        present_bytes = _start(response, present_bytes)
        file.truncate(present_bytes)
        length = response.headers.get("Content-Length", "")
        total_bytes = present_bytes + int(length) if length.isdigit() else None
        report(present_bytes, total_bytes)
        for block in response.iter_content(_BLOCK_BYTES):
            present_bytes += len(block)
            if max(present_bytes, total_bytes or 0) > max_bytes:
                raise FetchError(
                    f"{url}: sends more than {max_bytes} bytes, which the file does not have"
                )
            _write(file, block)
            report(present_bytes, total_bytes)


def _start(response: requests.Response, requested: int) -> int:
    """The first byte of the response: 0 if the server sends the whole file all the same."""
    if response.status_code == requests.codes.ok:
        return 0
    content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status_code != requests.codes.partial_content or content_range is None:
        raise FetchError(
            f"{response.url}: the server returned {response.status_code} {response.reason}"
        )
    start = int(content_range[1])
    if start > requested:
        raise FetchError(
            f"{response.url}: requested the bytes from {requested} on, got those from {start} on"
        )
    return start


def _write(file: BinaryIO, block: bytes) -> None:
    remaining = memoryview(block)
    while remaining:
        try:
            remaining = remaining[file.write(remaining) :]
        except OSError as error:
            raise FetchError(f"{file.name}: {error.strerror}{_kept(file)}") from error


def _kept(file: BinaryIO) -> str:
    return f"; {file.tell() / 1e6:.1f} MB are kept for the next try" if file.tell() else ""
