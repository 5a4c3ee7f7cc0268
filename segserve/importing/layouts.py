"""The layouts of checkpoints: which library named the tensors, and which architecture they show.

A tensor's name says what it is; rates and output stride cannot be seen, so they are the library's
defaults unless a `config.json` or the user names them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.errors import ModelError
from ..runtime.network import build_network
from ..runtime.record import Architecture, InputRule, validated

State = dict[str, Tensor]

_RATES = (12, 24, 36)  # of torchvision and of segmentation_models_pytorch

# By the blocks of the four stages, and whether they are bottlenecks.
_RESNETS: Mapping[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The tensors of a checkpoint, and what its folder says about them.

    Attributes:
        config: the folder's `config.json`; empty for a plain file.
        preprocessing: the folder's `preprocessor_config.json`; empty if there is none.
        notes: what was removed to find the tensors, one line each.
    """

    path: Path
    state: State
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Recognised:
    """A checkpoint in the names of `SegmentationNetwork`.

    Attributes:
        num_classes: outputs of the classifier; 1 for a sigmoid.
        labels: the class names, if the checkpoint's folder has them; so for the input `rule`.
        size_multiple: the network's input is rounded to a multiple of this.
    """

    library: str
    architecture: Architecture
    state: State
    num_classes: int
    labels: tuple[str, ...] | None = None
    rule: InputRule | None = None
    size_multiple: int = 1


def recognise(checkpoint: LoadedCheckpoint, given: Mapping[str, object]) -> Recognised:
    """Recognises a checkpoint and renames its tensors. The fields `given` by the user replace
    defaults. Raises ModelError if the architecture is not served.
    """
    for anchor, read in _LAYOUTS.items():
        found = re.compile(rf"^(.*?){anchor}$")
        match = next((match for name in checkpoint.state if (match := found.match(name))), None)
        if match:
            prefix = match[1]
            state = {
                name.removeprefix(prefix): tensor
                for name, tensor in checkpoint.state.items()
                if name.startswith(prefix)
            }
            return read(checkpoint, state, given)
    raise ModelError(
        f"{checkpoint.path.name}: {_named(checkpoint)}; served are DeepLabV3 of torchvision, "
        "DeepLabV3 and DeepLabV3Plus of segmentation_models_pytorch, and "
        "MobileNetV2ForSemanticSegmentation of Hugging Face"
    )


_NOT_SERVED = {
    r"seg_head\.aspp": "CoreNet: its encoders are not served",
    r"decode_head\.": "MMSegmentation: its models are not served",
    r"classifier\.cbr\.": "LR-ASPP of torchvision: not a DeepLab",
    r"classifier\.4\.weight$": "FCN with ResNet-{depth}: not a DeepLab",
    r"decoder\.blocks\.": "Unet of segmentation_models_pytorch: not a DeepLab",
    r"decoder\.psp\.": "PSPNet of segmentation_models_pytorch: not a DeepLab",
    r"decoder\.p5\.": "FPN of segmentation_models_pytorch: not a DeepLab",
    r"segformer\.": "SegFormer: not a DeepLab",
    r"fc\.weight$": "an image classifier: not a DeepLab",
}


def _named(checkpoint: LoadedCheckpoint) -> str:
    """What the checkpoint holds instead of a served architecture."""
    named = checkpoint.config.get("architectures") or [checkpoint.config.get("_model_class")]
    if named[0]:
        return f"{named[0]} is not served"
    names = list(checkpoint.state)
    for pattern, what in _NOT_SERVED.items():
        if any(re.match(rf"(.*\.)?{pattern}", name) for name in names):
            return what.format(depth=101 if any(".layer3.22." in name for name in names) else 50)
    return f"its {len(names)} tensors ({', '.join(names[:3])}, ...) are of no known DeepLab"


# torchvision


def _torchvision(
    checkpoint: LoadedCheckpoint, state: State, given: Mapping[str, object]
) -> Recognised:
    mobile = "backbone.0.0.weight" in state
    name = "mobilenet_v3_large" if mobile else _resnet(state, "backbone.", checkpoint)
    fields = {
        "backbone": f"torchvision.{name}",
        "output_stride": 16 if mobile else 8,
        "aspp_rates": _RATES,
        "use_l5_exp": mobile,
    }
    # The auxiliary head is never computed.
    renamed = _renamed(state, {"backbone.": "backbone.", "classifier.": "head."})
    return _recognised("torchvision", fields, renamed, given)


def _resnet(state: State, prefix: str, checkpoint: LoadedCheckpoint) -> str:
    blocks = tuple(
        len({name.split(".")[0] for name in _below(state, f"{prefix}layer{stage}.")})
        for stage in range(1, 5)
    )
    name = _RESNETS.get((blocks, f"{prefix}layer1.0.conv3.weight" in state))
    if name is None:
        raise ModelError(
            f"{checkpoint.path.name}: its encoder is not one of {', '.join(_RESNETS.values())}"
        )
    return name


def _renamed(state: State, prefixes: Mapping[str, str]) -> State:
    """The tensors below these prefixes, with ours in their place."""
    return {
        own + name: state[theirs + name]
        for theirs, own in prefixes.items()
        for name in _below(state, theirs)
    }


def _below(state: State, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in state if name.startswith(prefix)]


# segmentation_models_pytorch

_SMP_HEAD = {
    "segmentation_head.0.": "head.4.",
    "decoder.aspp.": "head.0.",
    "decoder.conv.": "head.1.",
    "decoder.bn.": "head.2.",
    "decoder.0.": "head.0.",  # versions before 0.4
    "decoder.1.": "head.1.",
    "decoder.2.": "head.2.",
}
_SMP_PLUS_HEAD = {
    "segmentation_head.0.": "head.classifier.",
    "decoder.aspp.0.": "head.aspp.",
    "decoder.aspp.1.": "head.aspp_conv.",
    "decoder.aspp.2.": "head.aspp_conv.2.",
    "decoder.block1.": "head.low_level.",
    "decoder.block2.0.": "head.fuse.",
    "decoder.block2.1.": "head.fuse.2.",
}


def _smp(checkpoint: LoadedCheckpoint, state: State, given: Mapping[str, object]) -> Recognised:
    config, plus = checkpoint.config, any(name.startswith("decoder.block1.") for name in state)
    separable = any(re.search(r"convs\.1\.0\.0\.weight$", name) for name in state)
    encoder = _smp_encoder(checkpoint, state, given)
    theirs = "encoder." if "dilation" in encoder else "encoder.model."
    fields: dict[str, Any] = {
        **encoder,
        "head": "deeplabv3plus" if plus else "deeplabv3",
        "output_stride": config.get("encoder_output_stride", 16 if plus else 8),
        "aspp_rates": config.get("decoder_atrous_rates", _RATES),
        "aspp_sep_conv": separable,
    }
    names = {theirs: "backbone."} | (_SMP_PLUS_HEAD if plus else _SMP_HEAD)
    renamed = _renamed(state, names)
    if separable:
        renamed = {_flat_branch(name): tensor for name, tensor in renamed.items()}
    return _recognised("segmentation_models_pytorch", fields, renamed, given, multiple=32)


def _flat_branch(name: str) -> str:
    """Theirs: a separable convolution of two layers, then the norm. Ours: three layers."""
    name = re.sub(r"(convs\.[123])\.1\.(\w+)$", r"\1.2.\2", name)
    return re.sub(r"(convs\.[123])\.0\.([01])\.weight$", r"\1.\2.weight", name)


def _smp_encoder(
    checkpoint: LoadedCheckpoint, state: State, given: Mapping[str, object]
) -> dict[str, Any]:
    if any(name.startswith("encoder.model.") for name in state):
        name = str(checkpoint.config.get("encoder_name", ""))
        if "backbone" in given:
            return {}
        if not name.startswith("tu-"):
            raise ModelError(
                f"{checkpoint.path.name}: its encoder is one of timm, and a state dict does not "
                "name it: import the folder that save_pretrained writes, or name it with --backbone"
            )
        return {"backbone": name.removeprefix("tu-")}
    return {
        "backbone": f"torchvision.{_resnet(state, 'encoder.', checkpoint)}",
        "dilation": "uniform",
    }


# Hugging Face

_EPSILON = 1e-5  # of nn.BatchNorm2d
_HF_HEAD = {
    "segmentation_head.conv_aspp.convolution.": "head.0.convs.0.0.",
    "segmentation_head.conv_aspp.normalization.": "head.0.convs.0.1.",
    "segmentation_head.conv_pool.convolution.": "head.0.convs.1.1.",  # behind the average
    "segmentation_head.conv_pool.normalization.": "head.0.convs.1.2.",
    "segmentation_head.conv_projection.convolution.": "head.0.project.0.",
    "segmentation_head.conv_projection.normalization.": "head.0.project.1.",
    "segmentation_head.classifier.convolution.": "head.1.",
}


def _hugging_face(
    checkpoint: LoadedCheckpoint, state: State, given: Mapping[str, object]
) -> Recognised:
    config = checkpoint.config
    if not config:
        raise ModelError(
            f"{checkpoint.path.name}: a model of Hugging Face needs its config.json: import the "
            "folder"
        )
    width = round(100 * float(config.get("depth_multiplier", 1.0)))
    fields = {
        "backbone": f"mobilenetv2_{width:03d}",
        "output_stride": config.get("output_stride", 32),
        "padding": "same" if config.get("tf_padding", True) else "default",
        "head": "corenet",
        "aspp_rates": (),
    }
    architecture = validated({**fields, **given}, Architecture, "architecture")
    labels = config.get("id2label") or {}
    num_classes = len(_taken(state, "segmentation_head.classifier.convolution.bias"))
    with torch.device("meta"):
        own = build_network(architecture, num_classes).backbone
    names = dict(_HF_HEAD)
    for theirs, (conv, norm) in zip(_hugging_face_convolutions(), _pairs(own), strict=True):
        names[f"mobilenet_v2.{theirs}.convolution."] = f"backbone.{conv}."
        names[f"mobilenet_v2.{theirs}.normalization."] = f"backbone.{norm}."
    renamed = _renamed(state, names)
    epsilon = float(config.get("layer_norm_eps", 0.001)) - _EPSILON
    for name, values in renamed.items():
        if name.startswith("backbone.") and name.endswith(".running_var"):
            renamed[name] = values + epsilon
    project = _taken(renamed, "head.0.project.0.weight")
    # Theirs concatenates the image branch first.
    renamed["head.0.project.0.weight"] = project.roll(project.shape[1] // 2, dims=1)
    named = [str(labels.get(str(index), "")) for index in range(num_classes)]
    return Recognised(
        "Hugging Face",
        architecture,
        renamed,
        num_classes,
        tuple(named) if all(named) and len(set(named)) == num_classes else None,
        _hugging_face_rule(checkpoint.preprocessing),
    )


def _hugging_face_convolutions() -> list[str]:
    stem = [f"conv_stem.{name}" for name in ("first_conv", "conv_3x3", "reduce_1x1")]
    block = ("expand_1x1", "conv_3x3", "reduce_1x1")
    return stem + [f"layer.{index}.{name}" for index in range(16) for name in block]


def _pairs(backbone: nn.Module) -> list[tuple[str, str]]:
    """(convolution, the norm after it), in the order of the network."""
    convolutions = [name for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)]
    norms = [name for name, part in backbone.named_modules() if isinstance(part, nn.BatchNorm2d)]
    return list(zip(convolutions, norms, strict=True))


def _taken(state: State, name: str) -> Tensor:
    if name not in state:
        raise ModelError(f"the checkpoint lacks the tensor {name}")
    return state[name]


def _hugging_face_rule(preprocessing: Mapping[str, Any]) -> InputRule | None:
    size = preprocessing.get("size")
    mean, std = preprocessing.get("image_mean"), preprocessing.get("image_std")
    if not isinstance(size, Mapping) or mean is None or std is None:
        return None
    side = "shorter" if "shortest_edge" in size else "longer"
    size_px = size.get("shortest_edge") or size.get("longest_edge") or max(size.values())
    rule = {"resize": {"side": side, "size_px": size_px}, "mean": mean, "std": std}
    return validated(rule, InputRule, "preprocessor_config.json")


def _recognised(
    library: str,
    fields: Mapping[str, object],
    state: State,
    given: Mapping[str, object],
    *,
    multiple: int = 1,
) -> Recognised:
    name = "head.classifier.weight" if "head.classifier.weight" in state else "head.4.weight"
    num_classes, out_channels, *_ = _taken(state, name).shape
    fields = {**fields, "aspp_out_channels": out_channels, **given}
    architecture = validated(fields, Architecture, "architecture")
    return Recognised(library, architecture, state, num_classes, size_multiple=multiple)


_Reader = Callable[[LoadedCheckpoint, State, Mapping[str, object]], Recognised]
_LAYOUTS: Mapping[str, _Reader] = {
    r"classifier\.0\.convs\.0\.0\.weight": _torchvision,
    r"decoder\.(?:aspp|0|aspp\.0)\.convs\.0\.0\.weight": _smp,
    r"segmentation_head\.conv_aspp\.convolution\.weight": _hugging_face,
}
"""By a tensor that only this layout has, what reads it."""
