"""The network with norms folded for a GPU, on the CPU, where it computes the same; and on a GPU
where there is one.
"""

import logging

import pytest
import torch
from torch import nn

from segserve.runtime.acceleration import cuda as folded_module
from segserve.runtime.acceleration.cuda import GpuFusedConv2d, gpu_fused_network
from segserve.runtime.acceleration.verified import OptimizationError, verified
from segserve.runtime.network import build_network

from .networks import ARCHITECTURES, randomised
from .tiny import tiny_network, tiny_record

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(
        torch.device("cuda", 0),
        id="gpu",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@torch.inference_mode()
def test_fused_network_of_any_architecture_gives_the_same_logits_at_any_size(architecture, device):
    network = randomised(build_network(architecture, num_classes=5))
    result = gpu_fused_network(network, torch.float32, device)
    assert {type(module) for module in result.modules()} & {GpuFusedConv2d, nn.BatchNorm2d} == {
        GpuFusedConv2d
    }
    tolerance = 1e-3 if device == CPU else 2e-2  # of TF32
    for height_px, width_px in ((96, 128), (160, 64)):
        image = torch.randn(2, 3, height_px, width_px)
        torch.testing.assert_close(
            result(image.to(device)).cpu(), network(image), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_fused_network_in_bf16_gives_the_labels_of_float32(device):
    network = tiny_network(tiny_record())
    image = torch.randn(1, 3, 256, 256)
    result = gpu_fused_network(network, torch.bfloat16, device)
    assert result is not network
    labels = result(image.to(device, torch.bfloat16)).argmax(dim=1).cpu()
    assert (labels == network(image).argmax(dim=1)).float().mean() > 0.98


@torch.inference_mode()
def test_fused_convolution_in_bf16_keeps_the_digits_of_its_bias():
    conv = nn.Conv2d(1, 1, 1)
    layer = GpuFusedConv2d(
        conv,
        torch.ones(1, 1, 1, 1),
        torch.tensor([1.00390625]),
        None,
        dtype=torch.bfloat16,
    )
    # bf16 has nothing between 1 and 1.0078125: a bias of that dtype would be 1, and the sum
    # nothing.
    assert layer(torch.full((1, 1, 1, 1), -1.0, dtype=torch.bfloat16)).item() == 0.00390625


def test_fused_network_can_be_moved_and_leaves_the_network_as_it_was():
    network = tiny_network(tiny_record())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gpu_fused_network(network, torch.bfloat16, CPU).to(torch.float64)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


class Shared(nn.Module):
    """One convolution and one activation, each at work twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.twice = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.twice(self.twice(self.relu(self.norm(self.conv(x)) - 1) + self.relu(x)))


def test_fused_network_with_modules_at_work_twice_gives_the_same_logits():
    network = randomised(Shared())
    result = gpu_fused_network(network, torch.float32, CPU)
    assert isinstance(result.conv, GpuFusedConv2d)
    assert isinstance(result.twice, nn.Conv2d)
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
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
        assert gpu_fused_network(network, torch.float32, CPU) is network
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "the network runs unfused on cpu, which is slower: its logits differ by"
    )


class NotFinite(nn.Module):
    """What is added to bf16 is finite, and the sum is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) * torch.tensor(
            3e38 if x.dtype == torch.float32 else float("inf"), dtype=x.dtype
        )


def test_fused_network_whose_logits_are_not_finite_is_not_used_and_warned_of(caplog):
    network = randomised(NotFinite())
    assert gpu_fused_network(network, torch.bfloat16, CPU) is network
    (record,) = caplog.records
    assert "unfused on cpu, which is slower: its logits differ by" in record.getMessage()


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
    ids=["broken", "full"],
)
def test_fused_network_on_a_device_that_fails_raises_and_warns_of_nothing(
    monkeypatch, caplog, error
):
    def fuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(folded_module, "fuse", fuse)
    with pytest.raises(type(error), match="CUDA"):
        gpu_fused_network(tiny_network(tiny_record()), torch.float32, CPU)
    assert not caplog.records


class NotANumber(nn.Module):
    """A replacement that is broken in the worst way: its logits cannot be compared."""

    def forward(self, x):
        return torch.full((1, 5, x.shape[2] // 16, x.shape[3] // 16), torch.nan)


def test_replacement_that_gives_no_numbers_is_rejected():
    network = nn.Conv2d(3, 5, 16, stride=16).eval()
    with pytest.raises(OptimizationError, match="its logits differ by nan"):
        verified(network, lambda copied, image: NotANumber(), torch.float32, 0.1)
