"""Writes models as ONNX: here for the runtime `onnx`, as a graph that refers to the weights file;
in `write` for other programs. Needs the extra `export`.
"""

import base64
import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from ..runtime.errors import ModelError
from ..runtime.files import write_whole
from ..runtime.inference.arrays import relative_error
from ..runtime.inference.onnx_segmenter import (
    LOGITS_PROPERTY,
    RECORD_PROPERTY,
    OnnxSegmenter,
    check_image,
    made_from,
)
from ..runtime.network import SegmentationNetwork, load_network
from ..runtime.record import (
    NETWORK_FILE,
    InputRule,
    ModelRecord,
    named_weights,
    read_record,
    safetensors_header,
)
from ..runtime.settings import Settings

OPSET = 18
_TYPES = {"F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "F32": TensorProto.FLOAT}
PARAMETER_PREFIX = "network."  # the names of its parameters in `_FromPixels` begin with this

_TRACED = (2, 64, 96)  # any size: the graph takes all sizes

# RMS difference of the logits, in their standard deviations.
_TOLERANCE = 1e-3


def write_graph(model: Path, folder: Path) -> Path:
    """Writes `network.onnx` of a model folder into `folder`, where the weights file must lie beside
    it to be used. See `NETWORK_FILE` for input and output.

    Raises:
        ModelError: the weights are missing, PyTorch cannot export the network, or the file gives
            other logits than PyTorch.
    """
    record = read_record(model)
    network = load_network(record, model)
    weights = model / named_weights(record).file
    logits = _logits(network, record, check_image()).astype(np.float16)
    properties = {
        RECORD_PROPERTY: made_from(record),
        LOGITS_PROPERTY: base64.b64encode(logits.tobytes()).decode(),
    }
    proto = export_network(network, record)
    _refer_to(weights, proto.graph)
    helper.set_model_props(proto, properties)
    with TemporaryDirectory(prefix="segserve-") as name:
        workspace = Path(name)
        shutil.copy(weights, workspace)
        graph = workspace / NETWORK_FILE
        onnx.save(proto, graph)
        _compare(graph, network, record)
        written = folder / NETWORK_FILE
        write_whole(written, graph.read_bytes())
        return written


class _FromPixels(nn.Module):
    """uint8 (N, h, w, 3) -> logits, float32 (N, classes, h', w')."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, rule: InputRule) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(rule.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(rule.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return logits


def export_network(network: SegmentationNetwork, record: ModelRecord) -> onnx.ModelProto:
    """The network with its weights as ONNX. See `NETWORK_FILE` for input and output.

    This is PyTorch's older exporter. The newer one derives the sizes of all layers symbolically,
    which takes a minute; this one takes half a second.

    Raises:
        ModelError: PyTorch cannot export the network.
    """
    with TemporaryDirectory(prefix="segserve-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        file = Path(folder) / NETWORK_FILE
        try:
            torch.onnx.export(
                _FromPixels(network, record.input).eval(),
                (torch.zeros(*_TRACED, 3, dtype=torch.uint8),),
                file,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_axes={"pixels": {0: "n", 1: "h", 2: "w"}},
                opset_version=OPSET,
                do_constant_folding=False,  # the weights stay as they are
                dynamo=False,
            )
        except Exception as error:  # of many types
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{record.name}: PyTorch cannot export the network: {reason}"
            ) from error
        return onnx.load(file)


def _refer_to(weights: Path, graph: onnx.GraphProto) -> None:
    """Replaces the parameters in a graph by references into the file of the weights, converted to
    float32 where it has them in half precision.
    """
    begin, stored = safetensors_header(weights)
    converted = []
    for initializer in graph.initializer:
        tensor = stored.get(initializer.name.removeprefix(PARAMETER_PREFIX), {})
        data_type = _TYPES.get(tensor.get("dtype"))
        if initializer.data_type != TensorProto.FLOAT or data_type is None:
            continue
        if data_type != TensorProto.FLOAT:
            half = f"{initializer.name}.half"
            cast = helper.make_node("Cast", [half], [initializer.name], to=TensorProto.FLOAT)
            converted.append(cast)
            initializer.name = half
        initializer.data_type = data_type
        first, last = tensor["data_offsets"]
        onnx.external_data_helper.set_external_data(
            initializer, weights.name, offset=begin + first, length=last - first
        )
        initializer.ClearField("raw_data")
    for node in reversed(converted):
        graph.node.insert(0, node)


def _compare(graph: Path, network: nn.Module, record: ModelRecord) -> None:
    """Checks that the file gives PyTorch's logits at another size, and of several images."""
    segmenter = OnnxSegmenter(graph, record, settings=Settings(precision="fp32"), threads=1)
    image = check_image()[:, :80, :64]
    pixels = np.concatenate([image, image[:, ::-1]])
    error = relative_error(segmenter.infer(pixels), _logits(network, record, pixels))
    if not error <= _TOLERANCE:  # also if NaN
        raise ModelError(
            f"{record.name}: ONNX gives other logits than PyTorch: they differ by {error:.2g} "
            "standard deviations"
        )


def _logits(
    network: nn.Module, record: ModelRecord, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits = _FromPixels(network, record.input).eval()(torch.from_numpy(pixels.copy()))
    return logits.numpy()  # type: ignore[no-any-return]
