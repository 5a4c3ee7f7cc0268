"""A model's weights: written beside its record, and loaded, checked against it."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .errors import ModelError
from .fit import check_fit
from .network import SegmentationNetwork, build_network
from .record import ModelRecord, Weights, sha256_of

WEIGHTS_FILE = "weights.safetensors"


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> Weights:
    """Writes `folder/weights.safetensors`, which appears whole; what a record says of it."""
    partial = folder / f"{WEIGHTS_FILE}.part"
    partial.write_bytes(save(dict(tensors)))  # not by save_file, whose files nobody but their owner may read
    weights = Weights(file=WEIGHTS_FILE, sha256=sha256_of(partial))
    partial.replace(folder / WEIGHTS_FILE)
    return weights


def load_network(record: ModelRecord, folder: Path) -> SegmentationNetwork:
    """The record's network with its weights from `folder`, in evaluation mode, float32 on the CPU.

    Raises:
        ModelError: the weights are missing, have another SHA-256 than the record says, are not a safetensors
            file, or do not fit the network (the first names or shapes that differ are told).
    """
    network = build_network(record.architecture, len(record.classes))
    state = _read_weights(record, folder)
    check_fit(state, network, record)
    expected = network.state_dict()
    network.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, strict=True)
    return network.eval()


def _read_weights(record: ModelRecord, folder: Path) -> dict[str, Tensor]:
    if record.weights is None:
        raise ModelError(f"{record.name}: the record names no weights: {_remedy(record)} first")
    path = folder / record.weights.file
    if not path.is_file():
        raise ModelError(f"{record.weights.file}: the weights are missing")
    digest = sha256_of(path)
    if digest != record.weights.sha256:
        raise ModelError(f"{record.weights.file}: SHA-256 is {digest}, the record says {record.weights.sha256}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{record.weights.file}: not a safetensors file: {error}") from error


def _remedy(record: ModelRecord) -> str:
    return "`segserve fetch` the model" if record.checkpoint else "train the model"
