"""The int8 network: close to the one in float32, bytes between convolutions, and what takes
its place.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segserve.archive import build_archive
from segserve.local import LocalSegmenter
from segserve.runtime.acceleration.int8 import (
    Quantize,
    QuantizedConv2d,
    Scale,
    has_vnni,
    quantized_network,
)
from segserve.runtime.acceleration.verified import OptimizationError
from segserve.runtime.architecture import Architecture
from segserve.runtime.decode.image import decode_image
from segserve.runtime.errors import ModelError
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network.weights import RANGES_FILE, build_network
from segserve.runtime.record import read_record
from segserve.runtime.settings import Settings
from segserve.training.quantize import measure_ranges, quantize_model
from segserve.training.train.model_folder import export_weights
from tests.unit.test_cpu_fusion import ARCHITECTURES, randomised
from tests.unit.tiny import tiny_network, tiny_record, write_tiny_model

CPU = torch.device("cpu")
INT8 = Settings(precision="int8")

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this processor has no VNNI")


def clouds(seed: int, height_px: int = 128, width_px: int = 160) -> torch.Tensor:
    noise = torch.randn(1, 3, 16, 20, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=(height_px, width_px), mode="bilinear").tanh()


def in_int8(network: nn.Module, images: list[torch.Tensor]) -> nn.Module:
    network.ranges = measure_ranges(network, images)
    return quantized_network(network, CPU)


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).square().mean().sqrt() / expected.std())


@needs_vnni
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "multiscale"])
@torch.inference_mode()
def test_quantized_network_of_any_architecture_gives_nearly_the_same_logits_at_any_size(name):
    network = randomised(build_network(ARCHITECTURES[name], num_classes=5))
    result = in_int8(network, [clouds(seed) for seed in range(6)])
    for height_px, width_px in ((96, 128), (160, 64)):
        image = clouds(9, height_px, width_px)
        assert relative_error(result(image), network(image)) < 0.25


@needs_vnni
def test_quantized_network_multiplies_nothing_but_bytes():
    network = randomised(build_network(ARCHITECTURES["timm, same padding"], 5))
    result = in_int8(network, [clouds(0)])
    kinds = [type(module) for module in result.modules()]
    assert not {nn.Conv2d, nn.BatchNorm2d, nn.ReLU6} & set(kinds)
    assert (
        kinds.count(Quantize) < kinds.count(QuantizedConv2d) / 2
    )  # bytes are handed on where they can be


class Residual(nn.Module):
    """What the first convolution gives is read by the second, and once more by the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x):
        convolved = self.first(x)
        return self.third(self.second(convolved) + convolved)


@needs_vnni
@torch.inference_mode()
def test_quantized_network_gives_float32_to_those_that_are_no_convolutions():
    torch.manual_seed(0)
    network = Residual().eval()
    result = in_int8(network, [clouds(0)])
    gave = {}
    for name in ("first", "second", "third"):
        getattr(result, name).register_forward_hook(
            lambda m, given, out, name=name: gave.update({name: out.dtype})
        )
    assert relative_error(result(clouds(1)), network(clouds(1))) < 0.05
    assert set(gave.values()) == {torch.float32}


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        return self.second(self.first(x))


@needs_vnni
@torch.inference_mode()
def test_quantized_network_hands_bytes_from_convolution_to_convolution():
    torch.manual_seed(0)
    network = Chain().eval()
    result = in_int8(network, [clouds(0)])
    assert result.first(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).dtype == torch.uint8
    assert relative_error(result(clouds(1)), network(clouds(1))) < 0.05


@needs_vnni
def test_quantized_network_leaves_the_network_as_it_was():
    network = randomised(Residual())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    in_int8(network, [clouds(0)])
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


@needs_vnni
@torch.inference_mode()
def test_quantized_network_gives_the_same_digits_on_any_number_of_threads():
    network = randomised(build_network(ARCHITECTURES["timm, same padding"], 5))
    result = in_int8(network, [clouds(0)])
    threads, logits = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            logits.append(result(clouds(1)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@needs_vnni
@pytest.mark.parametrize(
    ("architecture", "ranges", "message"),
    [
        ("timm, same padding", {}, "the range of the input of backbone"),
        ("multiscale", None, "TraceError"),
    ],
)
def test_quantized_network_that_cannot_be_made_is_rejected(architecture, ranges, message):
    network = randomised(build_network(ARCHITECTURES[architecture], 5))
    network.ranges = measure_ranges(network, [clouds(0)]) if ranges is None else ranges
    with pytest.raises(OptimizationError, match=message):
        quantized_network(network, CPU)


@needs_vnni
def test_quantized_network_with_the_ranges_of_other_weights_is_rejected():
    network = randomised(build_network(ARCHITECTURES["timm, same padding"], 5))
    measured = measure_ranges(network, [clouds(0)])
    network.ranges = {
        name: (least / 20, largest / 20) for name, (least, largest) in measured.items()
    }
    with pytest.raises(OptimizationError, match="its logits differ by"):
        quantized_network(network, CPU)


def test_measure_ranges_span_what_each_convolution_was_given():
    torch.manual_seed(0)
    network, images = Residual().eval(), [clouds(0), clouds(1)]
    ranges = measure_ranges(network, images)
    given = torch.cat(images)
    with torch.inference_mode():
        convolved = network.first(given)
    assert ranges["first"] == pytest.approx((float(given.min()), float(given.max())))
    assert ranges["second"] == pytest.approx(
        (float(convolved.min()), float(convolved.max())), rel=1e-4
    )


@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (0.0, 6.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_scale_keeps_every_value_of_its_range_to_half_a_step_and_zero_exactly(bounds):
    scale, values = Scale.of(*bounds), torch.linspace(*bounds, 1000)
    in_bytes = scale.bytes_of(values)
    assert in_bytes.dtype == torch.uint8
    assert ((in_bytes.float() - scale.zero) * scale.step - values).abs().max() <= 0.51 * scale.step
    assert scale.bytes_of(torch.zeros(1)).item() == scale.zero


def test_scale_clips_what_lies_outside_its_range_and_keeps_the_layout():
    values = torch.tensor([-9.0, 0.0, 9.0]).view(1, 3, 1, 1).expand(1, 3, 2, 4)
    in_bytes = Scale.of(-1, 1).bytes_of(values.contiguous(memory_format=torch.channels_last))
    assert in_bytes[0, :, 0, 0].tolist() == [0, 128, 255]
    assert in_bytes.is_contiguous(memory_format=torch.channels_last)


# A model with ranges


@pytest.fixture
def quantized_model(tmp_path, photographs) -> Path:
    """A tiny model that was quantized on two photographs."""
    for name, content in photographs.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    folder = tmp_path / "tiny"
    folder.mkdir()
    quantize_model(write_tiny_model(folder), sorted(tmp_path.glob("*.png")), lambda _finished: None)
    return folder


@needs_vnni
def test_segmenter_in_int8_gives_nearly_the_labels_of_float32(quantized_model, photographs):
    image_rgb = decode_image(photographs["chelsea"], max_pixels=2**24)
    in_int8 = Segmenter.load(quantized_model, settings=INT8)
    assert in_int8.precision == "int8"
    expected = (
        Segmenter.load(quantized_model, settings=Settings(precision="fp32"))
        .segment(image_rgb)
        .label_map
    )
    assert (in_int8.segment(image_rgb).label_map == expected).mean() > 0.9


def test_segmenter_without_vnni_computes_as_auto_does_with_one_warning(
    quantized_model, monkeypatch, caplog
):
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    image_rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with caplog.at_level(logging.WARNING):
        segmenter = Segmenter.load(quantized_model, settings=INT8)
    assert [record.message for record in caplog.records] == [
        f"the network computes in {segmenter.precision} instead of int8: this processor has no VNNI"
    ]
    expected = Segmenter.load(quantized_model).segment(image_rgb).label_map
    assert np.array_equal(segmenter.segment(image_rgb).label_map, expected)


def test_segmenter_in_int8_of_a_model_without_ranges_is_rejected(tmp_path):
    with pytest.raises(
        ModelError, match="precision int8: tiny has no ranges: `segserve quantize MODEL IMAGES`"
    ):
        Segmenter.load(write_tiny_model(tmp_path), settings=INT8)


def test_archive_in_int8_of_a_model_without_ranges_is_rejected(tmp_path):
    (write_tiny_model(tmp_path) / "model-config.yaml").write_text("handler: {precision: int8}")
    with pytest.raises(ModelError, match="precision int8"):
        build_archive(tmp_path, tmp_path / "build")


@needs_vnni
def test_archive_carries_the_ranges(quantized_model, tmp_path, photographs):
    (quantized_model / "model-config.yaml").write_text("handler: {precision: int8}")
    segmenter = LocalSegmenter(build_archive(quantized_model, tmp_path / "build"))
    expected = Segmenter.load(quantized_model, settings=INT8)
    assert segmenter._pipeline.segmenter.precision == "int8"
    segmentation = segmenter.segment(photographs["chelsea"])
    assert segmentation.label_map.shape == (300, 451)
    assert expected.precision == "int8"


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
    export_weights(tiny_network(record), record, quantized_model)
    assert read_record(quantized_model).int8 is None


def test_quantize_model_that_cannot_be_traced_writes_nothing(tmp_path, photographs):
    image = tmp_path / "chelsea.png"
    image.write_bytes(photographs["chelsea"])
    folder = tmp_path / "multi"
    folder.mkdir()
    record = tiny_record(
        architecture=Architecture(
            backbone="test_efficientnet", head="multiscale", aspp_out_channels=8
        )
    )
    torch.manual_seed(0)
    export_weights(build_network(record.architecture, 3), record, folder)
    if has_vnni():
        with pytest.raises(ModelError, match="tiny does not support int8: "):
            quantize_model(folder, [image], lambda _finished: None)
        assert read_record(folder).int8 is None
        assert not (folder / RANGES_FILE).exists()
