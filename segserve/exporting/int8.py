"""int8 convolutions in an ONNX model, as pairs of QuantizeLinear and DequantizeLinear.

As in `runtime.acceleration.int8`, activations are uint8 with measured ranges, and weights are int8
with one scale per output channel.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ..runtime.errors import ModelError
from ..runtime.network.weights import Ranges
from .graph import PARAMETER_PREFIX

_OPTIONS = {
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    # OpenVINO computes wrong classes if two convolutions share a quantized input.
    "DedicatedQDQPair": True,
}


def quantized_model(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """Quantizes the convolutions of an exported network, except for depthwise ones.

    These are a small part of the weights and multiplications, and cause most of the error.

    Args:
        model: as `graph.export_network` writes it.
        ranges: of the inputs of the convolutions, by the convolution's name in the network.

    Raises:
        ModelError: a range was not measured.
    """
    names = {
        node.name: node.input[1].removeprefix(PARAMETER_PREFIX).removesuffix(".weight")
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    unknown = names.values() - ranges.keys()
    if unknown:
        raise ModelError(
            f"int8: the range of the input of {min(unknown)} was not measured; `segserve quantize` "
            "measures it"
        )
    merged = _with_merged_norms(model)
    convolutions = [node for node in merged.graph.node if _is_dense_convolution(node)]
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


def _is_dense_convolution(node: onnx.NodeProto) -> bool:
    groups = next((each.i for each in node.attribute if each.name == "group"), 1)
    return node.op_type == "Conv" and groups == 1


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
