"""Published models: fetches a checkpoint, checks it, and makes a model folder of it that can be
served.

The record of such a model is in the repository; its weights are not, and lie with a completed copy
of the record in `$SEGSERVE_HOME/models/NAME`, `~/.cache/segserve` being the default. Nothing here
is run but by `segserve fetch`, except `servable_folder`, which only looks.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .download import Report, download
from .runtime.errors import FetchError, ModelError
from .runtime.network.build import build_network
from .runtime.network.state_dict import check_fit
from .runtime.network.weights import WEIGHTS_FILE, write_weights
from .runtime.record import (
    RECORD_FILE,
    Checkpoint,
    ModelRecord,
    Weights,
    read_record,
    sha256_of,
    write_record,
)

HOME_VARIABLE = "SEGSERVE_HOME"
MIRROR_VARIABLE = "SEGSERVE_MIRROR"

_OURS = {
    "classifier.": "head.",
    "aux_classifier.": "aux_head.",
}  # names of torchvision's parts, and of ours


def servable_folder(model: Path) -> Path:
    """The folder with the weights of a model: its own, or that which `fetch_model` made.

    Raises:
        ModelError: the weights are yet to be fetched.
    """
    record = read_record(model)
    if record.weights or not record.checkpoint:
        return model
    folder, name = _fetched_folder(model), model.resolve().name
    if not (folder / RECORD_FILE).exists():
        raise ModelError(
            f"{name}: its weights are not in the repository: `segserve fetch {name}` downloads them"
        )
    if _without_weights(read_record(folder)) != record:
        raise ModelError(
            f"{name}: its record has changed since it was fetched: `segserve fetch {name}` renews "
            "it"
        )
    return folder


def fetch_model(model: Path, *, weights: Path | None, report: Report) -> Path:
    """Makes a published model ready to be served, and returns the folder that it is served from.

    A model that is ready is left as it is, and its checkpoint not downloaded again.

    Args:
        weights: a local file in place of the download, as safetensors or as `torch.save` writes a
            state dict. For a record without `checkpoint`, it is put into the folder `model` itself
            and may be any that fits.
        report: see `download`.

    Raises:
        ModelError: there is nothing to fetch, or the weights do not fit the record.
        FetchError: the checkpoint cannot be had, or is not the published one.
    """
    record = read_record(model)
    if record.checkpoint is None:
        return _with_own_weights(record, model, weights)
    folder = _fetched_folder(model)
    if weights is None and _has_weights(folder, record):
        present = read_record(folder)
        ready = {"weights": present.weights, "int8": present.int8}
    else:
        ready = {
            "weights": _fetched_weights(record, record.checkpoint, folder, weights, report),
            "int8": None,
        }
    write_record(record.model_copy(update=ready), folder)
    if (model / "README.md").exists():
        shutil.copyfile(model / "README.md", folder / "README.md")
    return folder


def _fetched_folder(model: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        Path(os.environ.get(HOME_VARIABLE) or cache / "segserve") / "models" / model.resolve().name
    )


def _without_weights(record: ModelRecord) -> ModelRecord:
    return record.model_copy(update={"weights": None, "int8": None})


def _has_weights(folder: Path, record: ModelRecord) -> bool:
    """Whether `folder` holds whole weights that were made from the record's checkpoint for its
    architecture.
    """
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


def _with_own_weights(record: ModelRecord, model: Path, weights: Path | None) -> Path:
    if weights is not None:
        own = _converted(weights, record, model)
        write_record(
            record.model_copy(
                update={"weights": own, "accuracy": None, "calibration": None, "int8": None}
            ),
            model,
        )
    elif record.weights is None:
        raise ModelError(
            f"{record.name}: the record names no checkpoint: train the model, or give --weights"
        )
    return model


def _fetched_weights(
    record: ModelRecord, checkpoint: Checkpoint, folder: Path, weights: Path | None, report: Report
) -> Weights:
    path = weights or folder / checkpoint.file
    if not weights and not path.exists():
        _download(checkpoint, path, report)
    elif (digest := sha256_of(path)) != checkpoint.sha256:
        _read_fitting(path, record)  # weights of another architecture are told as such
        raise FetchError(
            f"{path}: SHA-256 is {digest}, that of {checkpoint.file} is {checkpoint.sha256}. For "
            "weights of your own, "
            f"copy the model folder, and take checkpoint and accuracy out of the copy's record"
        )
    converted = _converted(path, record, folder)
    (folder / checkpoint.file).unlink(missing_ok=True)
    return converted


def _download(checkpoint: Checkpoint, path: Path, report: Report) -> None:
    base_url = os.environ.get(MIRROR_VARIABLE) or checkpoint.base_url
    max_bytes = int((checkpoint.size_mib + 1) * 2**20)
    try:
        download(
            f"{base_url.rstrip('/')}/{checkpoint.file}",
            path,
            sha256=checkpoint.sha256,
            max_bytes=max_bytes,
            report=report,
        )
    except FetchError as error:
        raise FetchError(
            f"{error}. Without internet: bring {checkpoint.base_url}{checkpoint.file} to {path} "
            "and fetch again, or "
            "name the file with --weights, or the address of a folder that has it in "
            f"{MIRROR_VARIABLE}"
        ) from error


def _converted(path: Path, record: ModelRecord, folder: Path) -> Weights:
    """Writes a checkpoint's tensors as `folder/weights.safetensors`: the same bytes whenever they
    are the same.
    """
    state = _read_fitting(path, record)
    folder.mkdir(parents=True, exist_ok=True)
    return write_weights(state, folder)


def _read_fitting(path: Path, record: ModelRecord) -> dict[str, Tensor]:
    state = {
        _our_name(name): tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in _read(path)
    }
    check_fit(state, build_network(record.architecture, len(record.classes)), record)
    return state


def _our_name(name: str) -> str:
    part = next((part for part in _OURS if name.startswith(part)), "")
    return _OURS.get(part, "") + name.removeprefix(part)


def _read(path: Path) -> list[tuple[str, Tensor]]:
    """The tensors of a checkpoint by name; no code that the file may hold is run."""
    try:
        is_safetensors = path.suffix == ".safetensors"
        content = (
            load_file(path)
            if is_safetensors
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it comes upon
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{path.name}: is no checkpoint that loads without running code: {reason}"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(tensor, Tensor) for tensor in content.values()
    ):
        raise ModelError(
            f"{path.name}: expected a state dict of tensors: save the model's state_dict() alone"
        )
    return [(str(name), tensor) for name, tensor in content.items()]
