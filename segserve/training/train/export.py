"""Writes trained weights into a model folder: half precision, as safetensors, their SHA-256 in the
record.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ...runtime.network.weights import write_weights
from ...runtime.record import ModelRecord, write_record


def export_weights(network: nn.Module, record: ModelRecord, folder: Path) -> ModelRecord:
    """Writes `folder/weights.safetensors` and `folder/model.yaml`; the record as it now stands.

    What was measured of earlier weights, accuracy, calibration and ranges, is dropped from the
    record.

    Raises:
        ValueError: a weight is not finite in half precision.
    """
    weights = write_weights(
        {name: _halved(name, tensor) for name, tensor in network.state_dict().items()}, folder
    )
    trained = record.model_copy(
        update={"weights": weights, "accuracy": None, "calibration": None, "int8": None}
    )
    write_record(trained, folder)
    return trained


def _halved(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.to(torch.float16)
    if not halved.isfinite().all():
        raise ValueError(
            f"{name}: holds values that are not finite, or above {torch.finfo(torch.float16).max}"
        )
    return halved
