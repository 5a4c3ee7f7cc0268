"""The network with norms and activations inside of its convolutions."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from segserve.runtime.acceleration import cpu as fused
from segserve.runtime.acceleration.cpu import FusedConv2d, cpu_fused_network
from segserve.runtime.acceleration.verified import OptimizationError, verified
from segserve.runtime.architecture import Architecture
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network.weights import build_network
from segserve.runtime.settings import Settings
from tests.conftest import PROJECT
from tests.unit.tiny import tiny_network, tiny_record

ARCHITECTURES = {
    "timm, same padding": Architecture(backbone="tf_efficientnet_lite0", aspp_out_channels=16),
    "timm, hard swish": Architecture(
        backbone="mobilenetv3_small_050", output_stride=32, aspp_out_channels=16
    ),
    "timm, silu": Architecture(backbone="efficientnet_b0", output_stride=16, aspp_out_channels=16),
    "torchvision resnet": Architecture(
        backbone="torchvision.resnet50", output_stride=8, aspp_out_channels=16
    ),
    "torchvision mobilenet": Architecture(
        backbone="torchvision.mobilenet_v3_large", aspp_out_channels=16
    ),
    "multiscale": Architecture(
        backbone="test_efficientnet", head="multiscale", aspp_out_channels=16
    ),
    "corenet, separable": Architecture(
        backbone="test_efficientnet", head="corenet", aspp_out_channels=16, aspp_sep_conv=True
    ),
}


def randomised(network: nn.Module) -> nn.Module:
    """In evaluation mode, with norms that have seen something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@torch.inference_mode()
def test_fused_network_of_any_architecture_gives_the_same_logits_at_any_size(architecture):
    network = randomised(build_network(architecture, num_classes=5))
    result = cpu_fused_network(network, torch.float32)
    assert result is not network
    for height_px, width_px in ((96, 128), (160, 64)):
        image = torch.randn(2, 3, height_px, width_px)
        torch.testing.assert_close(result(image), network(image), rtol=1e-3, atol=1e-3)


def test_fused_network_has_no_convolution_norm_or_activation_left():
    network = cpu_fused_network(
        randomised(build_network(ARCHITECTURES["timm, same padding"], 5)), torch.float32
    )
    kinds = {type(module) for module in network.modules()}
    assert FusedConv2d in kinds
    assert not kinds & {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6}


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no AVX-512"
)
@torch.inference_mode()
def test_fused_network_in_bf16_gives_the_labels_of_float32():
    record = tiny_record()
    network = tiny_network(record)
    image = torch.randn(1, 3, 256, 256)
    labels = cpu_fused_network(network, torch.bfloat16)(image.bfloat16()).argmax(dim=1)
    assert (labels == network(image).argmax(dim=1)).float().mean() > 0.98


def test_fused_network_leaves_the_network_as_it_was():
    network = tiny_network(tiny_record())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cpu_fused_network(network, torch.bfloat16)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


class Shared(nn.Module):
    """One convolution and one activation, each at work twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.twice = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.twice(self.twice(self.relu(self.norm(self.conv(x)) - 1) + self.relu(x)))


@torch.inference_mode()
def test_fused_network_with_modules_at_work_twice_gives_the_same_logits():
    network = randomised(Shared())
    result = cpu_fused_network(network, torch.float32)
    assert isinstance(result.conv, FusedConv2d)
    assert isinstance(result.twice, nn.Conv2d)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(result(image), network(image))


class ReadBeforeItsNorm(nn.Module):
    """Something besides the norm reads the convolution, so that folding the norm into it is
    wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        convolved = self.conv(x)
        return self.norm(convolved) + convolved


def test_fused_network_that_would_be_wrong_is_not_used_and_warned_of(caplog):
    network = randomised(ReadBeforeItsNorm())
    with caplog.at_level(logging.WARNING):
        assert cpu_fused_network(network, torch.float32) is network
    assert "unfused, which is slower: its logits differ by" in caplog.text


def test_fused_network_without_onednn_is_the_network_with_one_warning(caplog, monkeypatch):
    def missing(*arguments: object, **options: object) -> None:
        raise NotImplementedError("no such operator here")

    monkeypatch.setattr(fused, "FusedConv2d", missing)
    network = tiny_network(tiny_record())
    with caplog.at_level(logging.WARNING):
        assert cpu_fused_network(network, torch.float32) is network
    assert [record.message for record in caplog.records] == [
        "the network runs unfused, which is slower: NotImplementedError: no such operator here"
    ]


def test_segmenter_that_may_not_fuse_gives_the_labels_of_one_that_does(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    plain, quick = (
        Segmenter.load(tiny_model, settings=Settings(precision="fp32", fuse=fuse))
        for fuse in (False, True)
    )
    assert (plain.segment(image).label_map == quick.segment(image).label_map).mean() > 0.999


class NotANumber(nn.Module):
    """A replacement that is broken in the worst way: its logits cannot be compared."""

    def forward(self, x):
        return torch.full((1, 5, x.shape[2] // 16, x.shape[3] // 16), torch.nan)


def test_replacement_that_gives_no_numbers_is_rejected():
    network = nn.Conv2d(3, 5, 16, stride=16).eval()
    with pytest.raises(OptimizationError, match="its logits differ by nan"):
        verified(network, lambda copied, image: NotANumber(), torch.float32, 0.1)


@pytest.mark.parametrize("threads", [1, 2])
def test_fused_network_reorders_no_weights_at_a_size_that_it_has_seen(threads):
    """oneDNN reports each reorder on the standard output of the process."""
    done = subprocess.run(
        [sys.executable, "-c", REORDERS, str(threads)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, *later = done.stdout.split("next\n")
    executed = [line.split(",")[3:7] for line in first.splitlines() if "primitive,exec" in line]
    assert any("convolution" in parts for parts in executed), "oneDNN reports nothing"
    for output in later:
        assert [line for line in output.splitlines() if "exec,cpu,reorder" in line] == []


REORDERS = """
import sys
import torch
from segserve.runtime.acceleration.cpu import cpu_fused_network
from segserve.runtime.network.weights import build_network
from segserve.runtime.record import Architecture

torch.set_num_threads(int(sys.argv[1]))
architecture = Architecture(backbone="mobilenetv2_100", output_stride=16, head="corenet")
network = cpu_fused_network(build_network(architecture, num_classes=21).eval(), torch.float32)
sizes = (96, 128), (320, 240), (160, 160)
images = [
    torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last) for size in sizes
]
with torch.inference_mode(), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    for image in images:
        network(image)
    for image in images:
        print("next", flush=True)
        network(image)
"""
