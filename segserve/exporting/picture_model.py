"""The whole way from a picture to the class of every pixel as one ONNX model: resize, network,
resize back, choice of the class.

Input `image`: uint8 (1, H, W, 3), RGB, of any size. Output `label_map`: uint8 (1, H, W). On request
`probabilities`: float32 (1, classes, H, W).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from ..runtime.errors import ModelError
from ..runtime.network.weights import Ranges, SegmentationNetwork
from ..runtime.record import ModelRecord, ResizeRule
from .graph import OPSET, PARAMETER_PREFIX, export_network

Precision = Literal["fp32", "fp16", "int8"]

_NO_INPUT = ""  # an input of an operation that is left out
_OVERLAP_PERCENT = 15  # of the tiles that Deepness cuts

_OPTIONS = {
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    # OpenVINO computes wrong classes if two convolutions share a quantized input.
    "DedicatedQDQPair": True,
}


@dataclass
class _Nodes:
    """Appends operations to a graph, and gives their results names that begin with `prefix`."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(
        self,
        operation: str,
        *inputs: str,
        output: str | None = None,
        **attributes: Any,  # noqa: ANN401
    ) -> str:
        """The name of the result; `output` sets it."""
        output = output or f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def constant(self, value: object, dtype: type[np.generic] = np.int64) -> str:
        name = f"{self.prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def picture_model(
    network: SegmentationNetwork,
    record: ModelRecord,
    *,
    probabilities: bool = False,
    precision: Precision = "fp32",
) -> onnx.ModelProto:
    """The model of a network, float32 on the CPU, in evaluation mode.

    Raises:
        ModelError: PyTorch cannot export the network, or int8 lacks measured ranges.
    """
    with TemporaryDirectory(prefix="segserve-") as folder:
        path = Path(folder) / "network.onnx"
        export_network(network, record, path)
        model = onnx.load(path)
    if precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True)
    elif precision == "int8":
        model = quantized_model(model, network.ranges)
    before, after = _Nodes("before"), _Nodes("after")
    size = before.add("Shape", "image")
    height, width = (_element(before, size, index) for index in (1, 2))
    _resize_picture(before, record.input.resize, height, width)
    outputs = _choose_classes(after, record, height, width, probabilities=probabilities)
    graph = helper.make_graph(
        [*before.nodes, *model.graph.node, *after.nodes],
        record.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "height", "width", 3])],
        outputs,
        [*model.graph.initializer, *before.constants, *after.constants],
    )
    whole = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=model.ir_version
    )
    helper.set_model_props(whole, _properties(record))
    onnx.checker.check_model(whole)
    return whole


def _element(nodes: _Nodes, vector: str, index: int) -> str:
    """One element of a vector, as a vector of one."""
    return nodes.add("Gather", vector, nodes.constant([index]))


def _network_size(nodes: _Nodes, rule: ResizeRule, height: str, width: str) -> list[str]:
    """The height and the width of `ResizeRule.size_for`."""
    longer, shorter = nodes.add("Max", height, width), nodes.add("Min", height, width)
    side = longer if rule.side == "longer" else shorter
    size, most = nodes.constant([rule.size_px]), nodes.constant([rule.max_px])
    # The smaller of size / side and most / longer, as a fraction of whole numbers.
    is_size = nodes.add("LessOrEqual", nodes.add("Mul", size, longer), nodes.add("Mul", most, side))
    numerator = nodes.add("Where", is_size, size, most)
    denominator = nodes.add("Where", is_size, side, longer)
    return [_rounded(nodes, rule, each, numerator, denominator) for each in (height, width)]


def _resize_picture(nodes: _Nodes, rule: ResizeRule, height: str, width: str) -> None:
    """`image` -> `pixels`, uint8 (1, h, w, 3), at the network's size."""
    rows, columns = _network_size(nodes, rule, height, width)
    channels = nodes.constant([1, 3])
    pixels = _cast(nodes, nodes.add("Transpose", "image", perm=[0, 3, 1, 2]), TensorProto.FLOAT)
    # As the runtime resizes: first the columns, then the rows, to whole numbers each time.
    for size_hw in ((height, columns), (rows, columns)):
        pixels = _resized(nodes, pixels, nodes.add("Concat", channels, *size_hw, axis=0))
    as_bytes = _cast(nodes, pixels, TensorProto.UINT8)
    nodes.add("Transpose", as_bytes, perm=[0, 2, 3, 1], output="pixels")


def _resized(nodes: _Nodes, pixels: str, size: str) -> str:
    """Pixels as float32, (1, 3, H, W), resized with antialiasing and rounded to whole numbers."""
    resized = nodes.add("Resize", pixels, _NO_INPUT, _NO_INPUT, size, mode="linear", antialias=1)
    rounded = nodes.add("Floor", nodes.add("Add", resized, nodes.constant(0.5, np.float32)))
    limits = (nodes.constant(limit, np.float32) for limit in (0, 255))
    return nodes.add("Clip", rounded, *limits)


def _cast(nodes: _Nodes, values: str, data_type: int, output: str | None = None) -> str:
    return nodes.add("Cast", values, output=output, to=data_type)


def _rounded(nodes: _Nodes, rule: ResizeRule, side: str, numerator: str, denominator: str) -> str:
    """Side x numerator / denominator, as `ResizeRule` rounds and limits it.

    Whole numbers alone: a float32 could round to the wrong multiple.
    """
    one = nodes.constant([1])
    dividend = nodes.add("Mul", side, numerator)
    divisor = nodes.add("Mul", denominator, nodes.constant([rule.multiple_of]))
    quotient = nodes.add("Div", dividend, divisor)
    rest = nodes.add("Sub", dividend, nodes.add("Mul", quotient, divisor))
    if rule.rounding == "up":
        is_up = nodes.add("Greater", rest, nodes.constant([0]))
    elif rule.rounding == "nearest":  # of two equally near, the even one
        two = nodes.constant([2])
        twice = nodes.add("Mul", rest, two)
        is_odd = nodes.add("Equal", nodes.add("Mod", quotient, two), one)
        is_tie = nodes.add("And", nodes.add("Equal", twice, divisor), is_odd)
        is_up = nodes.add("Or", nodes.add("Greater", twice, divisor), is_tie)
    else:
        is_up = nodes.constant([False], np.bool_)
    multiples = nodes.add("Add", quotient, _cast(nodes, is_up, TensorProto.INT64))
    most = nodes.constant([rule.max_px // rule.multiple_of])
    limited = nodes.add("Max", one, nodes.add("Min", multiples, most))
    return nodes.add("Mul", limited, nodes.constant([rule.multiple_of]))


def _choose_classes(
    nodes: _Nodes, record: ModelRecord, height: str, width: str, *, probabilities: bool
) -> list[onnx.ValueInfoProto]:
    """`logits` -> the outputs of the model, at the picture's size."""
    classes = len(record.classes)
    size = nodes.add("Concat", nodes.constant([1, classes]), height, width, axis=0)
    logits = nodes.add("Resize", "logits", _NO_INPUT, _NO_INPUT, size, mode="linear")
    labels = nodes.add("ArgMax", logits, axis=1, keepdims=0)
    _cast(nodes, labels, TensorProto.UINT8, output="label_map")
    outputs = [
        helper.make_tensor_value_info("label_map", TensorProto.UINT8, [1, "height", "width"])
    ]
    if probabilities:
        scaled = nodes.add("Div", logits, nodes.constant(record.temperature, np.float32))
        nodes.add("Softmax", scaled, axis=1, output="probabilities")
        shape: list[str | int | None] = [1, classes, "height", "width"]
        outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape))
    return outputs


def _properties(record: ModelRecord) -> dict[str, str]:
    """Our record, and the keys of the plugin Deepness of QGIS."""
    names = dict(enumerate(record.labels))
    return {
        "record": record.model_dump_json(exclude_none=True),
        "name": record.name,
        "version": record.version,
        "licence": record.licence,
        "palette": json.dumps([info.color for info in record.classes]),
        "model_type": json.dumps("Segmentor"),
        "class_names": json.dumps(names),
        "tiles_size": json.dumps(record.input.resize.size_px),
        "tiles_overlap": json.dumps(_OVERLAP_PERCENT),
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
