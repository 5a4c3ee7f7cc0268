"""Writes and loads a model's weights and the ranges of its activations. Loading checks them against
the record.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, tensor

from ..errors import ModelError
from ..files import write_whole
from ..record import ModelRecord, Weights, sha256_of
from .build import Ranges, SegmentationNetwork, build_network
from .state_dict import check_fit

WEIGHTS_FILE = "weights.safetensors"
RANGES_FILE = "int8.safetensors"


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> Weights:
    """Writes `folder/weights.safetensors` atomically. Returns the entry for the record."""
    return _write(tensors, folder / WEIGHTS_FILE)


def write_ranges(ranges: Ranges, folder: Path) -> Weights:
    """Writes `folder/int8.safetensors`, float32 (2,) by name, atomically. Returns the entry for the
    record.
    """
    return _write({name: tensor(values) for name, values in ranges.items()}, folder / RANGES_FILE)


def load_network(record: ModelRecord, folder: Path) -> SegmentationNetwork:
    """The record's network with its weights and ranges from `folder`, in evaluation mode, float32
    on the CPU.

    Raises:
        ModelError: the record names no weights. A file is missing, its SHA-256 differs from the
            record's, or it is not a safetensors file. Or the weights do not match the network; the
            message gives the first names or shapes that differ.
    """
    network = build_network(record.architecture, len(record.classes))
    if record.weights is None:
        raise ModelError(f"{record.name}: the record names no weights: {_remedy(record)} first")
    state = _read(record.weights, folder, "weights")
    check_fit(state, network, record)
    expected = network.state_dict()
    network.load_state_dict(
        {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, strict=True
    )
    if record.int8:
        network.ranges = _ranges(_read(record.int8, folder, "ranges"))
    return network.eval()


def _write(tensors: Mapping[str, Tensor], path: Path) -> Weights:
    content = save(dict(tensors))
    write_whole(path, content)
    return Weights(file=path.name, sha256=hashlib.sha256(content).hexdigest())


def _read(weights: Weights, folder: Path, what: str) -> dict[str, Tensor]:
    path = folder / weights.file
    if not path.is_file():
        raise ModelError(f"{weights.file}: the {what} are missing")
    digest = sha256_of(path)
    if digest != weights.sha256:
        raise ModelError(f"{weights.file}: SHA-256 is {digest}, the record says {weights.sha256}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{weights.file}: not a safetensors file: {error}") from error


def _ranges(tensors: Mapping[str, Tensor]) -> Ranges:
    ranges = {}
    for name, values in tensors.items():
        if values.shape != (2,) or not values.isfinite().all():
            raise ModelError(
                f"{RANGES_FILE}: {name}: expected the least and the largest value, got {values}"
            )
        ranges[name] = (float(values[0]), float(values[1]))
    return ranges


def _remedy(record: ModelRecord) -> str:
    return "`segserve fetch` the model" if record.checkpoint else "train the model"
