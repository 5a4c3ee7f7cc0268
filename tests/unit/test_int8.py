"""int8 convolutions: close to float32, the same on any number of threads, and what takes their
place where they are impossible.
"""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segserve.archive import build_archive
from segserve.local import LocalSegmenter
from segserve.runtime.acceleration.openvino_model import (
    LEAST_WEIGHTS,
    RANGES_FILE,
    read_ranges,
    with_exact_zero,
)
from segserve.runtime.acceleration.verified import OptimizationError, openvino_network
from segserve.runtime.decode.image import decode_image
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.onnx_segmenter import OnnxSegmenter
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import build_network
from segserve.runtime.record import NETWORK_FILE, Architecture, read_record
from segserve.runtime.settings import Settings
from segserve.training.calibration import measure_ranges, quantize_model
from segserve.training.model_folder import export_weights
from tests.conftest import EMBEDDED
from tests.unit.networks import ARCHITECTURES, randomised
from tests.unit.tiny import tiny_record, write_tiny_model

INT8 = Settings(precision="int8")
FLOAT32 = Settings(precision="fp32")


@pytest.fixture
def with_vnni(monkeypatch):
    """OpenVINO computes the same without VNNI, but more slowly."""
    monkeypatch.setattr("segserve.runtime.acceleration.openvino_model.has_vnni", lambda: True)


def clouds(seed: int, height_px: int = 128, width_px: int = 160) -> torch.Tensor:
    noise = torch.randn(1, 3, 16, 20, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=(height_px, width_px), mode="bilinear").tanh()


def in_int8(network: nn.Module, images: list[torch.Tensor]) -> nn.Module:
    network.ranges = measure_ranges(network, images)
    return openvino_network(network, torch.float32, network.ranges)


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_int8_network_of_any_architecture_gives_nearly_the_same_logits_at_any_size(name):
    network = randomised(build_network(ARCHITECTURES[name], num_classes=5))
    result = in_int8(network, [clouds(seed) for seed in range(6)])
    for height_px, width_px in ((96, 128), (160, 64)):
        image = clouds(9, height_px, width_px)
        assert 1e-5 < relative_error(result(image), network(image)) < 0.25


@torch.inference_mode()
def test_int8_network_leaves_the_network_as_it_was():
    network = randomised(build_network(ARCHITECTURES["timm, same padding"], 5))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    in_int8(network, [clouds(0)])
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


@torch.inference_mode()
def test_int8_network_gives_the_same_digits_on_any_number_of_threads():
    network = randomised(build_network(ARCHITECTURES["timm, same padding"], 5))
    network.ranges = measure_ranges(network, [clouds(0)])
    threads, logits = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            logits.append(openvino_network(network, torch.float32, network.ranges)(clouds(1)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


class Convolution(nn.Module):
    """One convolution with `LEAST_WEIGHTS` weights, or half as many."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 64, 1)
        self.large = nn.Conv2d(64, channels, 1, bias=False)

    def forward(self, x):
        return self.large(self.convolution(x))


@torch.inference_mode()
def test_int8_network_rounds_weights_and_inputs_of_large_convolutions_alone():
    torch.manual_seed(0)
    network, image = Convolution(LEAST_WEIGHTS // 64).eval(), clouds(0)
    result = in_int8(network, [image])
    inputs = network.convolution(image)
    least, largest = (float(bound) for bound in with_exact_zero(*network.ranges["large"]))
    step = (largest - least) / 255
    inputs = ((inputs - least) / step).round() * step + least
    weight = network.large.weight
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    expected = nn.functional.conv2d(inputs, (weight / scale).round() * scale)
    assert relative_error(result(image), expected) < 0.003
    assert relative_error(result(image), network(image)) > 0.005


@pytest.mark.parametrize(
    ("network", "ranges", "message"),
    [
        (Convolution(LEAST_WEIGHTS // 64), {}, "the range of the input of large was not measured"),
        (Convolution(8), None, "no convolution has 16384 weights or more"),
    ],
    ids=["no-range", "small"],
)
def test_int8_network_that_cannot_be_made_is_rejected(network, ranges, message):
    network.eval().ranges = measure_ranges(network, [clouds(0)]) if ranges is None else ranges
    with pytest.raises(OptimizationError, match=message):
        openvino_network(network, torch.float32, network.ranges)


def test_int8_network_with_the_ranges_of_other_weights_is_rejected():
    network = randomised(build_network(ARCHITECTURES["timm, same padding"], 5))
    measured = measure_ranges(network, [clouds(0)])
    network.ranges = {
        name: (least / 20, largest / 20) for name, (least, largest) in measured.items()
    }
    with pytest.raises(OptimizationError, match="its logits differ by"):
        openvino_network(network, torch.float32, network.ranges)


def test_measure_ranges_span_what_each_convolution_was_given():
    torch.manual_seed(0)
    network, images = Convolution(8).eval(), [clouds(0), clouds(1)]
    ranges = measure_ranges(network, images)
    given = torch.cat(images)
    with torch.inference_mode():
        convolved = network.convolution(given)
    assert ranges["convolution"] == pytest.approx((float(given.min()), float(given.max())))
    assert ranges["large"] == pytest.approx(
        (float(convolved.min()), float(convolved.max())), rel=1e-4
    )
    assert not network.large._forward_pre_hooks


@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (0.0, 6.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_with_exact_zero_spans_the_range_to_half_a_step_and_has_a_step_at_zero(bounds):
    least, largest = (float(bound) for bound in with_exact_zero(*bounds))
    step = (largest - least) / 255
    assert least <= min(bounds[0], 0) + step / 2
    assert largest >= max(bounds[1], 0) - step / 2
    assert least / step == pytest.approx(round(least / step), abs=1e-3)


# A model with ranges


@pytest.fixture
def quantized_model(tmp_path, photographs) -> Path:
    """A small model that was quantized on two photographs."""
    for name, content in photographs.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    folder = tmp_path / "small"
    folder.mkdir()
    write_model(folder, Architecture(backbone="test_efficientnet", head="corenet"))
    quantize_model(folder, sorted(tmp_path.glob("*.png")), lambda _finished: None)
    return folder


def write_model(folder: Path, architecture: Architecture) -> None:
    record = tiny_record(architecture=architecture)
    torch.manual_seed(0)
    export_weights(randomised(build_network(architecture, 3)), record, folder)


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_segmenter_of_a_model_with_ranges_computes_in_int8(
    quantized_model, photographs, with_vnni, precision
):
    image_rgb = decode_image(photographs["chelsea"], max_pixels=2**24)
    segmenter = Segmenter.load(quantized_model, settings=Settings(precision=precision))
    assert (segmenter.precision, segmenter.backend) == ("int8", "OpenVINO")
    expected = Segmenter.load(quantized_model, settings=FLOAT32).segment(image_rgb).label_map
    assert (segmenter.segment(image_rgb).label_map == expected).mean() > 0.9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_segmenter_in_another_precision_does_not_compute_in_int8(
    quantized_model, with_vnni, precision
):
    segmenter = Segmenter.load(quantized_model, settings=Settings(precision=precision))
    assert segmenter.precision == {"fp32": "float32", "bf16": "bfloat16"}[precision]


def test_onnx_segmenter_and_pytorch_s_compute_nearly_the_same_in_int8(photographs, with_vnni):
    image_rgb = decode_image(photographs["chelsea"], max_pixels=2**24)
    with_onnx = OnnxSegmenter.load(EMBEDDED, settings=Settings(), threads=1)
    with_torch = Segmenter.load(EMBEDDED)
    assert with_onnx.precision == with_torch.precision == "int8"
    label_map = with_onnx.segment(image_rgb).label_map
    assert (label_map == with_torch.segment(image_rgb).label_map).mean() > 0.99
    in_float32 = OnnxSegmenter.load(EMBEDDED, settings=FLOAT32, threads=1)
    assert (label_map == in_float32.segment(image_rgb).label_map).mean() > 0.99


def without_vnni(monkeypatch):
    monkeypatch.setattr("segserve.runtime.acceleration.openvino_model.has_vnni", lambda: False)


@pytest.mark.parametrize(
    ("precision", "messages"),
    [
        ("int8", ["the network does not compute in int8: it needs OpenVINO, and VNNI"]),
        ("auto", []),
    ],
)
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_segmenter_without_vnni_computes_as_bf16_or_float32_does(
    monkeypatch, caplog, runtime, precision, messages
):
    without_vnni(monkeypatch)
    settings = Settings(precision=precision)
    with caplog.at_level(logging.WARNING):
        if runtime == "torch":
            segmenter = Segmenter.load(EMBEDDED, settings=settings)
        else:
            segmenter = OnnxSegmenter.load(EMBEDDED, settings=settings, threads=1)
    assert [record.message for record in caplog.records] == messages
    assert segmenter.precision in ("bfloat16", "float32")


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_segmenter_with_ranges_of_other_weights_computes_without_int8_and_says_so(
    monkeypatch, caplog, with_vnni, runtime
):
    wrong = {
        name: (least / 50, largest / 50)
        for name, (least, largest) in read_ranges(read_record(EMBEDDED), EMBEDDED).items()
    }
    for module in ("network", "inference.onnx_segmenter"):
        monkeypatch.setattr(f"segserve.runtime.{module}.read_ranges", lambda *_: wrong)
    with caplog.at_level(logging.WARNING):
        if runtime == "torch":
            segmenter = Segmenter.load(EMBEDDED)
        else:
            segmenter = OnnxSegmenter.load(EMBEDDED, settings=Settings(), threads=1)
    assert segmenter.precision in ("bfloat16", "float32")
    [warning] = caplog.records
    assert warning.message.startswith("the network does not compute in int8: ")
    assert "standard deviations" in warning.message


def test_segmenter_in_int8_of_a_model_without_ranges_is_rejected(tmp_path):
    with pytest.raises(
        ModelError, match="precision int8: tiny has no ranges: `segserve quantize MODEL IMAGES`"
    ):
        Segmenter.load(write_tiny_model(tmp_path), settings=INT8)


def test_archive_in_int8_of_a_model_without_ranges_is_rejected(tmp_path):
    (write_tiny_model(tmp_path) / "model-config.yaml").write_text("handler: {precision: int8}")
    with pytest.raises(ModelError, match="precision int8"):
        build_archive(tmp_path, tmp_path / "build")


def test_archive_carries_the_ranges(quantized_model, tmp_path, photographs, with_vnni):
    (quantized_model / "model-config.yaml").write_text("handler: {precision: int8}")
    segmenter = LocalSegmenter(build_archive(quantized_model, tmp_path / "build"))
    expected = Segmenter.load(quantized_model, settings=INT8)
    assert segmenter._pipeline.segmenter.precision == "int8"
    segmentation = segmenter.segment(photographs["chelsea"])
    image_rgb = decode_image(photographs["chelsea"], max_pixels=2**24)
    assert np.array_equal(segmentation.label_map, expected.segment(image_rgb).label_map)


def test_onnx_segmenter_of_a_broken_network_raises_and_does_not_warn_of_int8(
    tmp_path, caplog, with_vnni
):
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "broken"))
    (folder / NETWORK_FILE).write_bytes(b"")
    with pytest.raises(ModelError, match=r"network\.onnx"):
        OnnxSegmenter.load(folder, settings=Settings(), threads=1)
    assert not caplog.records


def damage(folder: Path) -> None:
    (folder / RANGES_FILE).write_bytes(b"no tensors")


def forget(folder: Path) -> None:
    (folder / RANGES_FILE).unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damage, "int8.safetensors: SHA-256 is"),
        (forget, "int8.safetensors: the ranges are missing"),
    ],
)
def test_model_with_broken_ranges_is_rejected_in_any_precision(quantized_model, break_it, message):
    break_it(quantized_model)
    with pytest.raises(ModelError, match=message):
        Segmenter.load(quantized_model)


def test_trained_again_a_model_has_no_ranges_any_more(quantized_model):
    record = read_record(quantized_model)
    assert record.int8 is not None
    export_weights(build_network(record.architecture, 3), record, quantized_model)
    assert read_record(quantized_model).int8 is None
