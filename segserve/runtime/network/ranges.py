"""Reads and writes the input ranges of convolutions, which int8 needs. Reading needs no PyTorch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import ModelError
from ..record import ModelRecord, Weights, safetensors_header, verified_file, write_verified

Ranges = Mapping[str, tuple[float, float]]
"""The smallest and the largest input value of each convolution, by the convolution's name."""

RANGES_FILE = "int8.safetensors"


def write_ranges(ranges: Ranges, folder: Path) -> Weights:
    """Writes `folder/int8.safetensors`, float32 (2,) by name. Returns the entry for the record."""
    from safetensors.numpy import save

    content = save({name: np.array(bounds, np.float32) for name, bounds in ranges.items()})
    return write_verified(content, folder / RANGES_FILE)


def read_ranges(record: ModelRecord, folder: Path) -> Ranges:
    """The measured ranges of a model; empty if it has none.

    Raises:
        ModelError: the file is missing, has another SHA-256 than the record's, or is not valid.
    """
    if record.int8 is None:
        return {}
    path = verified_file(record.int8, folder, "ranges")
    try:
        begin, header = safetensors_header(path)
        tensors = path.read_bytes()[begin:]
        ranges = {
            name: np.frombuffer(tensors[slice(*entry["data_offsets"])], np.float32)
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path.name}: not a safetensors file: {error}") from error
    for name, bounds in ranges.items():
        if bounds.shape != (2,) or not np.isfinite(bounds).all():
            raise ModelError(
                f"{path.name}: {name}: expected the least and the largest value, got {bounds}"
            )
    return {name: (float(least), float(largest)) for name, (least, largest) in ranges.items()}
