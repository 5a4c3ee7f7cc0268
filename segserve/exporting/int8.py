"""int8 convolutions in an ONNX model, as pairs of QuantizeLinear and DequantizeLinear.

As in `runtime.acceleration.int8`, activations are uint8 with measured ranges, and weights are int8
with one scale per output channel.
"""

from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ..runtime.acceleration.int8 import LEAST_WEIGHTS
from ..runtime.errors import ModelError
from ..runtime.network.ranges import Ranges
from .graph import PARAMETER_PREFIX

_OPTIONS = {
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    # OpenVINO computes wrong classes if two convolutions share a quantized input.
    "DedicatedQDQPair": True,
}


def quantized_model(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """Quantizes the large convolutions of an exported network, as the runtime does.

    Args:
        model: as `graph.export_network` writes it.
        ranges: of the inputs of the convolutions, by the convolution's name in the network.

    Raises:
        ModelError: a range was not measured.
    """
    names = {
        node.name: node.input[1].removeprefix(PARAMETER_PREFIX).removesuffix(".weight")
        for node in _large_convolutions(model)
    }
    unknown = names.values() - ranges.keys()
    if unknown:
        raise ModelError(
            f"int8: the range of the input of {min(unknown)} was not measured; `segserve quantize` "
            "measures it"
        )
    merged = _with_merged_norms(model)
    convolutions = [node for node in merged.graph.node if node.name in names]
    limits = {
        node.input[0]: tuple(map(np.float32, ranges[names[node.name]])) for node in convolutions
    }
    quantizer = QDQQuantizer(
        merged,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=[node.name for node in convolutions],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options=_OPTIONS,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model  # type: ignore[no-any-return]


def _large_convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    sizes = {each.name: prod(each.dims) for each in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and _groups(node) == 1 and sizes[node.input[1]] >= LEAST_WEIGHTS
    ]


def _groups(node: onnx.NodeProto) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)


def _with_merged_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime merges the norms into the convolutions, which keep their names."""
    with TemporaryDirectory(prefix="segserve-") as folder:
        path = Path(folder) / "merged.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(path)
