"""The depthwise convolutions of training against PyTorch's own."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from segserve.training.depthwise import FastDepthwiseConv2d, use_fast_depthwise

GEOMETRIES = {
    "3x3": dict(kernel_size=3, stride=1, padding=1, dilation=1),
    "5x5 stride 2": dict(kernel_size=5, stride=2, padding=2, dilation=1),
    "3x3 stride 2, padded before": dict(kernel_size=3, stride=2, padding=0, dilation=1),
    "5x5 dilated": dict(kernel_size=5, stride=1, padding=4, dilation=2),
    "3x3 stride 3, dilated": dict(kernel_size=3, stride=3, padding=2, dilation=2),
    "stride by side": dict(kernel_size=3, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "3x3 stride 2, padded as in TensorFlow": dict(kernel_size=3, stride=2, kind=Conv2dSame),
}


def depthwise(*, fast, kind=nn.Conv2d, **geometry):
    torch.manual_seed(0)
    network = nn.Sequential(kind(6, 6, groups=6, bias=False, **geometry))
    if fast:
        use_fast_depthwise(network)
        assert isinstance(network[0], FastDepthwiseConv2d)
    return network


def gradients(network, *, size_hw=(13, 18), dtype=torch.float32):
    """Output, gradient of the input, gradient of the weight."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size_hw, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = network(x)
    torch.autograd.backward((y.float() * torch.randn(y.shape, generator=generator)).sum())
    return y.detach(), x.grad, network[0].weight.grad


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(
    "size_hw", [(13, 18), (16, 16), (7, 9)], ids=["odd and even", "square", "small"]
)
def test_fast_depthwise_gives_the_output_and_gradients_of_torch(geometry, size_hw):
    expected = gradients(depthwise(fast=False, **geometry), size_hw=size_hw)
    got = gradients(depthwise(fast=True, **geometry), size_hw=size_hw)
    for ours, torchs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-4, rtol=1e-4)


def test_fast_depthwise_in_bf16_is_as_close_to_float32_as_torch_is():
    geometry = GEOMETRIES["5x5 dilated"]
    exact = gradients(depthwise(fast=False, **geometry))
    errors = [
        [
            (got.float() - wanted).norm() / wanted.norm()
            for got, wanted in zip(found, exact, strict=True)
        ]
        for found in (
            gradients(depthwise(fast=fast, **geometry), dtype=torch.bfloat16)
            for fast in (True, False)
        )
    ]
    assert all(ours <= 1.5 * torchs + 1e-3 for ours, torchs in zip(*errors, strict=True)), errors


class OwnConv2d(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("conv", "is_replaced"),
    [
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), True),
        (Conv2dSame(4, 4, 3, stride=2, groups=4, bias=False), True),
        (nn.Conv2d(4, 8, 3, bias=False), False),
        (nn.Conv2d(4, 8, 3, groups=2, bias=False), False),
        (nn.Conv2d(4, 8, 3, groups=4, bias=False), False),
        (nn.Conv2d(1, 1, 3, bias=False), False),
        (nn.Conv2d(4, 4, 3, groups=4), False),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False, padding="same"), False),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False, padding=3), False),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False, padding=1, padding_mode="reflect"), False),
        (OwnConv2d(4, 4, 3, groups=4, bias=False), False),
    ],
    ids=[
        "depthwise", "as in TensorFlow", "full", "grouped", "two outputs per channel",
        "one channel", "bias", "named padding", "padding beyond the kernel", "reflected",
        "another class",
    ],
)  # fmt: skip
def test_use_fast_depthwise_replaces_depthwise_convolutions_and_no_others(conv, is_replaced):
    network = nn.Sequential(conv)
    use_fast_depthwise(network)
    assert isinstance(network[0], FastDepthwiseConv2d) == is_replaced
    assert (network[0] is conv) != is_replaced


@pytest.fixture(scope="module")
def mobile():
    torch.manual_seed(0)
    return timm.create_model(
        "tf_mobilenetv3_small_minimal_100", features_only=True, output_stride=16
    ).eval()


def test_use_fast_depthwise_keeps_parameters_and_state_dict(mobile):
    network = deepcopy(mobile)
    names = list(network.state_dict())
    parameters = list(network.parameters())
    use_fast_depthwise(network)
    assert sum(isinstance(module, FastDepthwiseConv2d) for module in network.modules()) > 5
    assert list(network.state_dict()) == names
    for ours, former in zip(network.parameters(), parameters, strict=True):
        assert ours is former
    network.load_state_dict(mobile.state_dict())


def test_fast_depthwise_trains_a_mobile_backbone_as_torch_does(mobile):
    grads = []
    for fast in (True, False):
        network = deepcopy(mobile)
        if fast:
            use_fast_depthwise(network)
        torch.manual_seed(1)
        features = network(torch.randn(2, 3, 65, 97))
        torch.autograd.backward(sum(level.square().mean() for level in features))
        grads.append(
            [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        )
    assert len(grads[0]) > 50
    for ours, torchs in zip(*grads, strict=True):
        assert (ours - torchs).norm() <= 1e-4 * torchs.norm() + 1e-7
