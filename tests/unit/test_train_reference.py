"""Google's quantized network as the start of a model: the TFLite file, its weights in ours, and
norms to train with.
"""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from typer.testing import CliRunner

from segserve.cli import app
from segserve.runtime.errors import ModelError
from segserve.runtime.network import build_network, load_network
from segserve.runtime.record import (
    Architecture,
    ClassInfo,
    InputRule,
    ResizeRule,
    read_record,
    sha256_of,
    write_record,
)
from segserve.training.reference import (
    Convolution,
    load_reference,
    read_reference,
    standardize_norms,
)

from .tiny import tiny_record
from .voc import write_pair, write_split

ARCHITECTURE = Architecture(backbone="mobilenetv2_100", padding="centered", head="corenet")
CLASSES = tuple(ClassInfo(label=f"class {n}", color=(n, n, n)) for n in range(21))


@pytest.fixture(scope="module")
def convolutions():
    """Those of the file with random values: every convolution has a bias."""
    network = build_network(ARCHITECTURE, 21)
    generator = torch.Generator().manual_seed(0)

    def convolution(weight):
        scale = (2 / weight[0].numel()) ** 0.5
        bias = torch.randn(len(weight), generator=generator) / 10
        return Convolution(torch.randn(weight.shape, generator=generator) * scale, bias)

    shapes = [
        module.weight for module in network.backbone.modules() if isinstance(module, nn.Conv2d)
    ]
    shapes += [torch.empty(256, 320, 1, 1)] * 2 + [
        torch.empty(256, 512, 1, 1),
        torch.empty(21, 256, 1, 1),
    ]
    return {f"scope{n}": convolution(weight) for n, weight in enumerate(shapes)}


def features_by_hand(convolutions, network, image):
    """The file's head on the features of the loaded backbone: image branch, 1x1 branch, projection,
    classifier.
    """
    aspp0, pooling, projection, classifier = list(convolutions.values())[-4:]
    features = network.backbone(image)[-1]
    pooled = F.conv2d(features.mean((2, 3), keepdim=True), pooling.weight, pooling.bias).relu()
    branch = F.conv2d(features, aspp0.weight, aspp0.bias).relu()
    joined = torch.cat([pooled.expand_as(branch), branch], dim=1)
    return F.conv2d(
        F.conv2d(joined, projection.weight, projection.bias).relu(),
        classifier.weight,
        classifier.bias,
    )


@torch.inference_mode()
def test_load_reference_computes_what_the_files_network_computes(convolutions):
    network = build_network(ARCHITECTURE, 21).eval()
    load_reference(network, convolutions)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    stem = next(iter(convolutions.values()))
    expected = F.conv2d(F.pad(image, (0, 1, 0, 1)), stem.weight, stem.bias, stride=2).clamp(0, 6)
    got = network.backbone.bn1(network.backbone.conv_stem(image))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        network(image), features_by_hand(convolutions, network, image), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"backbone": "mobilenetv2_050"}, id="backbone"),
        pytest.param({"head": "deeplabv3"}, id="head"),
        pytest.param({"aspp_out_channels": 128}, id="width"),
    ],
)
def test_load_reference_of_another_architecture_names_the_expected_one(convolutions, fields):
    architecture = Architecture.model_validate({**ARCHITECTURE.model_dump(), **fields})
    with pytest.raises(
        ModelError, match=r"it needs backbone mobilenetv2_100 .* head corenet, .* 21 classes"
    ):
        load_reference(build_network(architecture, 21), convolutions)


def test_standardize_norms_changes_no_logits_and_brings_filters_to_length_1(convolutions):
    network = build_network(ARCHITECTURE, 21).eval()
    load_reference(network, convolutions)
    with torch.no_grad():
        network.backbone.conv_stem.weight[3] = 0  # some filters of the file are 0
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(image)
        standardize_norms(network, [image[:1], image[1:]])
        torch.testing.assert_close(network(image), expected, rtol=1e-3, atol=1e-3)
    lengths = network.backbone.conv_stem.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(32).index_fill(0, torch.tensor([3]), 0))
    given = []
    network.backbone.bn1.register_forward_pre_hook(lambda _, values: given.append(values[0]))
    network(image)
    torch.testing.assert_close(
        network.backbone.bn1.running_mean, given[0].mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )
    variance = given[0].var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(network.backbone.bn1.running_var, variance, rtol=1e-3, atol=1e-4)


# The file


def write_tflite(path):
    """A quantized convolution and a depthwise one, with the names that TensorFlow's exporter
    gives.
    """
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    flatbuffers = pytest.importorskip("flatbuffers")
    generator = np.random.default_rng(0)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]
    graph.tensors, graph.operators = [], []

    def tensor(name, shape, kind, scale, zero_point, values=None):
        made, quantization = schema.TensorT(), schema.QuantizationParametersT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), kind, 0
        quantization.scale, quantization.zeroPoint = [scale], [zero_point]
        made.quantization = quantization
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code, options, kind, inputs, output):
        made, opcode = schema.OperatorT(), schema.OperatorCodeT()
        opcode.builtinCode = opcode.deprecatedBuiltinCode = code
        model.operatorCodes = [*(model.operatorCodes or []), opcode]
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes) - 1, inputs, [output]
        made.builtinOptions, made.builtinOptionsType = options, kind
        graph.operators.append(made)

    byte, int32 = schema.TensorType.UINT8, schema.TensorType.INT32
    kernel, depthwise = (
        generator.integers(0, 256, shape).astype(np.uint8) for shape in ((4, 3, 3, 3), (1, 3, 3, 4))
    )
    biases = [generator.integers(-999, 999, 4).astype(np.int32) for _ in range(2)]
    image = tensor("net/input", (1, 8, 8, 3), byte, 1 / 128, 128)
    fold = "net/Conv/Conv2D_Fold"
    first = [
        image,
        tensor(
            f"{fold};net/Conv/weights_quant/FakeQuantWithMinMaxVars",
            kernel.shape,
            byte,
            0.02,
            120,
            kernel,
        ),
        tensor("net/Conv/BatchNorm_Fold/bias", (4,), int32, 0.02 / 128, 0, biases[0]),
    ]
    hidden = tensor(
        f"net/Conv/Relu6;{fold};net/Conv/BatchNorm_Fold/bias", (1, 8, 8, 4), byte, 6 / 255, 0
    )
    second = [
        hidden,
        tensor(
            "net/depthwise/weights_quant/FakeQuantWithMinMaxVars",
            depthwise.shape,
            byte,
            0.5,
            7,
            depthwise,
        ),
        tensor("net/depthwise/BatchNorm_Fold/bias", (4,), int32, 0.5 * 6 / 255, 0, biases[1]),
    ]
    result = tensor("net/output", (1, 8, 8, 4), byte, 6 / 255, 0)
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = 1
    operator(
        schema.BuiltinOperator.CONV_2D, options, schema.BuiltinOptions.Conv2DOptions, first, hidden
    )
    options = schema.DepthwiseConv2DOptionsT()
    options.strideH = options.strideW = options.depthMultiplier = 1
    kinds = (
        schema.BuiltinOperator.DEPTHWISE_CONV_2D,
        options,
        schema.BuiltinOptions.DepthwiseConv2DOptions,
    )
    operator(*kinds, second, result)
    graph.inputs, graph.outputs = [image], [result]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return kernel, depthwise, biases


def test_read_reference_dequantizes_and_brings_axes_to_torchs_order(tmp_path):
    file = tmp_path / "small.tflite"
    kernel, depthwise, biases = write_tflite(file)
    read = read_reference(file, sha256=sha256_of(file))
    assert list(read) == ["net/Conv", "net/depthwise"]
    np.testing.assert_allclose(
        read["net/Conv"].weight, 0.02 * (kernel.transpose(0, 3, 1, 2) - 120.0), rtol=1e-5
    )
    np.testing.assert_allclose(read["net/Conv"].bias, 0.02 / 128 * biases[0], rtol=1e-5)
    expected = 0.5 * (depthwise.transpose(3, 0, 1, 2) - 7.0)
    np.testing.assert_allclose(read["net/depthwise"].weight, expected, rtol=1e-5)
    np.testing.assert_allclose(read["net/depthwise"].bias, 0.5 * 6 / 255 * biases[1], rtol=1e-5)


def test_read_reference_of_another_file_raises(tmp_path):
    file = tmp_path / "other.tflite"
    file.write_bytes(b"other")
    with pytest.raises(
        ModelError, match=r"other\.tflite: SHA-256 is d9298a10.*, expected 350af47f"
    ):
        read_reference(file)


def test_read_reference_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "small.tflite"
    file.write_bytes(b"small")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ModelError, match=r"pip install 'segserve\[tflite\]'"):
        read_reference(file, sha256=sha256_of(file))


# The command


@pytest.fixture
def model(tmp_path):
    rule = InputRule(resize=ResizeRule(size_px=64, multiple_of=32), mean=(0.5,) * 3, std=(0.5,) * 3)
    folder = tmp_path / "model"
    folder.mkdir()
    write_record(
        tiny_record(architecture=ARCHITECTURE, classes=CLASSES, input=rule, weights=None), folder
    )
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 60, 3), np.uint8)
        write_pair(tmp_path / "data", f"p{n}", pixels, np.ones((40, 60), np.uint8))
    write_split(tmp_path / "data", "train", ["p0", "p1", "p2"])
    return folder


def test_import_writes_weights_that_can_be_loaded(model, convolutions, tmp_path, monkeypatch):
    monkeypatch.setattr("segserve.training.reference.read_reference", lambda _file: convolutions)
    result = CliRunner().invoke(
        app, ["import", "any.tflite", "-o", str(model), "--data", str(tmp_path / "data")]
    )
    assert result.exit_code == 0, result.stderr
    assert f"segserve train {model} --data" in " ".join(result.stdout.split("\n"))
    network = load_network(read_record(model), model)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            network(image), features_by_hand(convolutions, network, image), rtol=0.05, atol=0.05
        )


def test_import_of_a_missing_file_does_not_change_the_folder(model, tmp_path):
    before = sorted(path.name for path in model.iterdir())
    result = CliRunner().invoke(
        app,
        ["import", str(tmp_path / "no.tflite"), "-o", str(model), "--data", str(tmp_path / "data")],
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("no.tflite: no such file")
    assert sorted(path.name for path in model.iterdir()) == before
