"""The whole way from a picture to the class of every pixel as one ONNX model: resize, network,
resize back, choice of the class.

Input `image`: uint8 (1, H, W, 3), RGB, of any size. Output `label_map`: uint8 (1, H, W). On request
`probabilities`: float32 (1, classes, H, W).
"""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from ..runtime.acceleration.openvino_model import LEAST_WEIGHTS, Ranges
from ..runtime.errors import ModelError
from ..runtime.network import SegmentationNetwork
from ..runtime.record import ModelRecord, ResizeRule
from . import OPSET, PARAMETER_PREFIX, export_network

Precision = Literal["fp32", "fp16", "int8"]

_OVERLAP_PERCENT = 15  # of the tiles that Deepness cuts
_OPTIONS = {
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    # OpenVINO computes wrong classes if two convolutions share a quantized input.
    "DedicatedQDQPair": True,
}


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
    model = export_network(network, record)
    if precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True)
    elif precision == "int8":
        model = quantized_model(model, network.ranges)
    outputs = [
        helper.make_tensor_value_info("label_map", TensorProto.UINT8, [1, "height", "width"])
    ]
    if probabilities:
        shape: list[str | int | None] = [1, len(record.classes), "height", "width"]
        outputs.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        [
            *_nodes(_resize_picture(record.input.resize)),
            *model.graph.node,
            *_nodes(_choose_classes(record, probabilities=probabilities)),
        ],
        record.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "height", "width", 3])],
        outputs,
        model.graph.initializer,
    )
    whole = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=model.ir_version
    )
    helper.set_model_props(whole, _properties(record))
    onnx.checker.check_model(whole)
    return whole


def _properties(record: ModelRecord) -> dict[str, str]:
    """Our record, and the keys of the plugin Deepness of QGIS."""
    return {
        "record": record.model_dump_json(exclude_none=True),
        "name": record.name,
        "version": record.version,
        "licence": record.licence,
        "palette": json.dumps([info.color for info in record.classes]),
        "model_type": json.dumps("Segmentor"),
        "class_names": json.dumps(dict(enumerate(record.labels))),
        "tiles_size": json.dumps(record.input.resize.size_px),
        "tiles_overlap": json.dumps(_OVERLAP_PERCENT),
    }


def _nodes(text: str) -> Sequence[onnx.NodeProto]:
    """Operations in ONNX's text format, see onnx/docs/Syntax.md."""
    nodes: Sequence[onnx.NodeProto] = onnx.parser.parse_graph(f"g () => () {{ {text} }}").node
    return nodes


# By rounding: whether a quotient is rounded up. `rest` is at least 0. Of two equally near numbers,
# the even one is taken.
_IS_UP = {
    "down": "is_up = Less (rest, zero)",
    "up": "is_up = Greater (rest, zero)",
    "nearest": """
        two = Constant <value_ints = [2]> ()
        twice = Mul (rest, two)
        is_near = Greater (twice, divisor)
        is_tie = Equal (twice, divisor)
        parity = Mod (quotient, two)
        is_odd = Equal (parity, one)
        is_odd_tie = And (is_tie, is_odd)
        is_up = Or (is_near, is_odd_tie)
    """,
}


def _network_size(rule: ResizeRule) -> str:
    """`size_hw` -> `network_hw`, as `ResizeRule.size_for`.

    The scale is the smaller of size / side and most / longer, as a fraction of whole numbers: a
    float32 could round to the wrong multiple.
    """
    return f"""
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        size = Constant <value_ints = [{rule.size_px}]> ()
        most = Constant <value_ints = [{rule.max_px}]> ()
        multiple = Constant <value_ints = [{rule.multiple_of}]> ()
        most_multiples = Constant <value_ints = [{rule.max_px // rule.multiple_of}]> ()
        longer = ReduceMax (size_hw)
        shorter = ReduceMin (size_hw)
        size_by_longer = Mul (size, longer)
        most_by_side = Mul (most, {rule.side})
        is_size = LessOrEqual (size_by_longer, most_by_side)
        numerator = Where (is_size, size, most)
        denominator = Where (is_size, {rule.side}, longer)
        dividend = Mul (size_hw, numerator)
        divisor = Mul (denominator, multiple)
        quotient = Div (dividend, divisor)
        whole = Mul (quotient, divisor)
        rest = Sub (dividend, whole)
        {_IS_UP[rule.rounding]}
        one_more = Cast <to = {TensorProto.INT64}> (is_up)
        multiples = Add (quotient, one_more)
        at_most = Min (multiples, most_multiples)
        at_least_one = Max (at_most, one)
        network_hw = Mul (at_least_one, multiple)
    """


def _resize_picture(rule: ResizeRule) -> str:
    """`image` -> `pixels`, uint8 (1, h, w, 3), at the network's size.

    As the runtime resizes: first the columns, then the rows, to whole numbers each time.
    """
    return f"""
        size_hw = Shape <start = 1, end = 3> (image)
        {_network_size(rule)}
        height, width = Split <num_outputs = 2> (size_hw)
        rows, columns = Split <num_outputs = 2> (network_hw)
        channels = Constant <value_ints = [1, 3]> ()
        half = Constant <value_float = 0.5> ()
        black = Constant <value_float = 0.0> ()
        white = Constant <value_float = 255.0> ()
        channels_first = Transpose <perm = [0, 3, 1, 2]> (image)
        picture = Cast <to = {TensorProto.FLOAT}> (channels_first)
        {_resized("picture", "height, columns", "narrow")}
        {_resized("narrow", "rows, columns", "small")}
        small_bytes = Cast <to = {TensorProto.UINT8}> (small)
        pixels = Transpose <perm = [0, 2, 3, 1]> (small_bytes)
    """


def _resized(pixels: str, size_hw: str, result: str) -> str:
    """float32 (1, 3, H, W), resized with antialiasing and rounded to whole numbers."""
    return f"""
        {result}_size = Concat <axis = 0> (channels, {size_hw})
        {result}_exact = Resize <mode = "linear", antialias = 1> ({pixels}, , , {result}_size)
        {result}_above = Add ({result}_exact, half)
        {result}_whole = Floor ({result}_above)
        {result} = Clip ({result}_whole, black, white)
    """


def _choose_classes(record: ModelRecord, *, probabilities: bool) -> str:
    """`logits` -> the outputs of the model, at the picture's size."""
    text = f"""
        classes = Constant <value_ints = [1, {len(record.classes)}]> ()
        logits_size = Concat <axis = 0> (classes, size_hw)
        resized_logits = Resize <mode = "linear"> (logits, , , logits_size)
        labels = ArgMax <axis = 1, keepdims = 0> (resized_logits)
        label_map = Cast <to = {TensorProto.UINT8}> (labels)
    """
    if probabilities:
        text += f"""
            temperature = Constant <value_float = {float(record.temperature)}> ()
            scaled_logits = Div (resized_logits, temperature)
            probabilities = Softmax <axis = 1> (scaled_logits)
        """
    return text


def quantized_model(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """Quantizes the large convolutions of an exported network, as the runtime does.

    Args:
        model: as `export_network` writes it.
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
