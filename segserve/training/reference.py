"""Starts a model from Google's quantized DeepLabV3-MobileNetV2, a TFLite file.

The file is `deeplabv3_mnv2_pascal_quant.tflite` of google-coral/test_data (Apache-2.0). Its
convolutions have int8 weights, with a scale and a zero point for each tensor; batch norms are fused
into weights and biases. On a MobileNetV2 backbone it has a 1x1 branch, an image branch, their
projection and a classifier, but no atrous branches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deeplabv3 import CoreNetHead

from ..runtime.errors import ModelError
from ..runtime.inference.segmenter import Segmenter
from ..runtime.network import SegmentationNetwork, build_network
from ..runtime.record import read_record, sha256_of
from ..runtime.settings import Settings
from .data import LabelledImages
from .model_folder import export_weights

REFERENCE_SHA256 = "350af47fd346ea6d74b58833a351f583ba860e9806ec5bd292ff8d8f1f249398"
_WEIGHT, _BIASES = "/weights_quant/FakeQuantWithMinMaxVars", ("/BatchNorm_Fold/bias", "/biases")
_IMAGES = 96  # for the means and variances of all norms
_EXPECTED = (
    "backbone mobilenetv2_100 with use_l5_exp false, head corenet, aspp_out_channels 256, 21 "
    "classes"
)


@dataclass(frozen=True)
class Convolution:
    """A convolution in float32: weight (out, in / groups, h, w) and bias (out,)."""

    weight: Tensor
    bias: Tensor


def import_reference(
    file: Path, folder: Path, data: LabelledImages, report: Callable[[int, int], None]
) -> None:
    """Writes the file's network into a model folder, with new atrous branches.

    Args:
        folder: has the record of a network of the same shape.
        data: 96 of its images, spread evenly, give the batch norms' statistics. Labels are not
            read.
        report: called after every image with the number of finished images and of all images.

    Raises:
        ModelError: the file is missing or has another SHA-256, the record's network has another
            shape, or the package ai-edge-litert is not installed.
        DataError: an image cannot be read.
    """
    record = read_record(folder)
    convolutions = read_reference(file)
    torch.manual_seed(0)  # for the atrous branches
    network = build_network(record.architecture, len(record.classes)).eval()
    load_reference(network, convolutions)
    segmenter = Segmenter(
        network, record, device=torch.device("cpu"), settings=Settings(precision="fp32")
    )
    names = data.names[:: ceil(len(data.names) / _IMAGES)]

    def inputs() -> Iterator[Tensor]:
        for finished, name in enumerate(names, start=1):
            yield segmenter.preprocess(data.image(name))
            report(finished, len(names))

    standardize_norms(network, inputs())
    export_weights(network, record, folder)


def read_reference(file: Path, *, sha256: str = REFERENCE_SHA256) -> dict[str, Convolution]:
    """TensorFlow scope -> convolution, in the order of the network."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file")
    if (digest := sha256_of(file)) != sha256:
        raise ModelError(f"{file}: SHA-256 is {digest}, expected {sha256}")
    constants = list(_constants(file))
    biases = {scope: values for scope, values in constants if values.ndim == 1}
    return {
        scope: Convolution(_in_torch_order(scope, values), biases[scope])
        for scope, values in constants
        if values.ndim == 4
    }


def _constants(file: Path) -> Iterator[tuple[str, Tensor]]:
    """(scope, weight or bias), dequantized to float32."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ModelError(
            "reading TFLite files needs a package: pip install 'segserve[tflite]'"
        ) from error

    interpreter = Interpreter(
        str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_tensor_details():
        name, is_bias = detail["name"].rsplit(";", 1)[-1], detail["dtype"] is np.int32
        for suffix in _BIASES if is_bias else (_WEIGHT,):  # activations have such names too
            if name.endswith(suffix):
                scale, zero_point = detail["quantization"]
                values = interpreter.get_tensor(detail["index"]).astype(np.float64)
                yield (
                    name.removesuffix(suffix),
                    torch.from_numpy((values - zero_point) * scale).float(),
                )


def _in_torch_order(scope: str, weight: Tensor) -> Tensor:
    """(out, h, w, in), or (1, h, w, out) if depthwise -> (out, in / groups, h, w)."""
    first, last = (3, 0) if scope.endswith("/depthwise") else (0, 3)
    return weight.permute(first, last, 1, 2)


def load_reference(network: SegmentationNetwork, convolutions: Mapping[str, Convolution]) -> None:
    """Loads the file's convolutions into a `mobilenetv2_100` with CoreNet's head, in place.

    Atrous branches keep their weights. The projection's weights for them are 0, so that the network
    computes the same as the file's network. Raises ModelError if the network has another shape.
    """
    *backbone, aspp0, pooling, projection, classifier = convolutions.values()
    pairs = list(_convolutions_with_norms(network.backbone))
    shapes = [conv.weight.shape for conv, _ in pairs]
    if (
        not isinstance(network.head, CoreNetHead)
        or shapes != [read.weight.shape for read in backbone]
        or network.head[1].weight.shape != classifier.weight.shape
    ):
        raise ModelError(
            f"the reference does not match the model's architecture: it needs {_EXPECTED}"
        )
    head: Any = network.head
    aspp, logits = head[0], head[1]
    for (conv, norm), read in zip(pairs, backbone, strict=True):
        _load(conv, norm, read)
    width = len(projection.bias)
    widened = torch.zeros_like(aspp.project[0].weight)
    # The file concatenates the image branch first.
    widened[:, :width] = projection.weight[:, width:]
    widened[:, -width:] = projection.weight[:, :width]
    _load(aspp.convs[0][0], aspp.convs[0][1], aspp0)
    _load(aspp.convs[-1][1], aspp.convs[-1][2], pooling)
    _load(aspp.project[0], aspp.project[1], Convolution(widened, projection.bias))
    with torch.no_grad():
        logits.weight.copy_(classifier.weight)
        logits.bias.copy_(classifier.bias)


def _convolutions_with_norms(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """(convolution, the norm directly after it)."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    for layer, following in pairwise(layers):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            yield layer, following


def _load(conv: nn.Conv2d, norm: nn.BatchNorm2d, read: Convolution) -> None:
    """Loads weight and bias. The norm adds the bias and changes nothing else."""
    with torch.no_grad():
        conv.weight.copy_(read.weight)
        norm.get_buffer("running_mean").zero_()
        norm.get_buffer("running_var").fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.copy_(read.bias)


def standardize_norms(network: SegmentationNetwork, images: Iterable[Tensor]) -> None:
    """Scales the filters of every convolution to length 1, in place, and sets the statistics of its
    norm to those of the images.

    The network computes the same before and after, but can be trained: the file's norms are fused,
    and the lengths of its filters differ by factors of a thousand. Images: normalised, float32
    (N, 3, H, W).
    """
    moments: dict[nn.Module, list[Tensor]] = {}

    def add_moments(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].double()
        moments.setdefault(norm, []).append(
            torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
        )

    pairs = list(_convolutions_with_norms(network))
    hooks = [norm.register_forward_pre_hook(add_moments) for _, norm in pairs]
    with torch.inference_mode():
        for image in images:
            network(image)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        mean, mean_square = torch.stack(moments[norm]).mean(0)
        _standardize(conv, norm, mean, (mean_square - mean.square()).clamp_min(0))


def _standardize(conv: nn.Conv2d, norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Scales the filters to length 1.

    The right learning rate of a filter before a norm is proportional to its squared length.
    """
    running_mean, running_var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.weight.double() / (running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - running_mean.double() * scale
    length = conv.weight.double().flatten(1).norm(dim=1)
    length = torch.where(length > 0, length, 1.0)  # some filters of the file are 0
    with torch.no_grad():
        conv.weight.div_(length.view(-1, 1, 1, 1))
        running_mean.copy_(mean / length)
        running_var.copy_(variance / length.square())
        norm.weight.copy_(scale * length * (running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(shift + mean * scale)
