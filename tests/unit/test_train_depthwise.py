"""Depthwise convolutions of the training loop against PyTorch's own."""

from contextlib import nullcontext

import pytest
import timm
import torch
from torch.nn import functional as F  # noqa: N812

from segserve.training.train import depthwise
from segserve.training.train.depthwise import FastDepthwise

GEOMETRIES = {
    "3x3": dict(kernel=3, stride=1, padding=1, dilation=1),
    "5x5 stride 2": dict(kernel=5, stride=2, padding=2, dilation=1),
    "3x3 stride 2, padded before": dict(kernel=3, stride=2, padding=0, dilation=1),
    "5x5 with holes": dict(kernel=5, stride=1, padding=4, dilation=2),
    "3x3 stride 3 with holes": dict(kernel=3, stride=3, padding=2, dilation=2),
    "stride by side": dict(kernel=3, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
}


def gradients(context, *, kernel, size_hw=(13, 18), dtype=torch.float32, **geometry):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size_hw, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(6, 1, kernel, kernel, generator=generator)
    x.requires_grad_()
    weight.requires_grad_()
    with context, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = F.conv2d(x, weight, groups=6, **geometry)
    torch.autograd.backward((y.float() * torch.randn(y.shape, generator=generator)).sum())
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(
    "size_hw", [(13, 18), (16, 16), (7, 9)], ids=["odd and even", "square", "small"]
)
def test_fast_depthwise_gives_the_output_and_gradients_of_torch(geometry, size_hw):
    expected = gradients(nullcontext(), size_hw=size_hw, **geometry)
    for got, wanted in zip(
        gradients(FastDepthwise(), size_hw=size_hw, **geometry), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_fast_depthwise_in_bf16_is_as_close_to_float32_as_torch_is():
    exact = gradients(nullcontext(), **GEOMETRIES["5x5 with holes"])
    errors = [
        [
            (got.float() - wanted).norm() / wanted.norm()
            for got, wanted in zip(made, exact, strict=True)
        ]
        for made in (
            gradients(context, dtype=torch.bfloat16, **GEOMETRIES["5x5 with holes"])
            for context in (FastDepthwise(), nullcontext())
        )
    ]
    assert all(ours <= 1.5 * torchs + 1e-3 for ours, torchs in zip(*errors, strict=True)), errors


def test_fast_depthwise_takes_depthwise_convolutions_and_no_others(monkeypatch):
    taken = []
    original = depthwise.DepthwiseConv2d.apply
    monkeypatch.setattr(
        depthwise.DepthwiseConv2d, "apply", lambda *args: taken.append(args) or original(*args)
    )
    x = torch.randn(1, 4, 9, 9)
    with FastDepthwise():
        F.conv2d(x, torch.randn(4, 1, 3, 3), groups=4)
        assert len(taken) == 1
        F.conv2d(x, torch.randn(8, 4, 3, 3))
        F.conv2d(x, torch.randn(8, 2, 3, 3), groups=2)
        F.conv2d(x, torch.randn(8, 1, 3, 3), groups=4)  # two outputs a channel
        F.conv2d(x, torch.randn(4, 1, 3, 3), torch.zeros(4), groups=4)  # a bias
        F.conv2d(x, torch.randn(4, 1, 3, 3), padding="same", groups=4)
        F.conv2d(
            x, torch.randn(4, 1, 3, 3), padding=3, groups=4
        )  # more padding than the kernel reaches
    assert len(taken) == 1


def test_fast_depthwise_trains_a_mobile_backbone_as_torch_does():
    grads = []
    for context in (FastDepthwise(), nullcontext()):
        torch.manual_seed(0)
        network = timm.create_model(
            "tf_mobilenetv3_small_minimal_100", features_only=True, output_stride=16
        )
        with context:
            features = network.eval()(torch.randn(2, 3, 65, 97))
        torch.autograd.backward(sum(level.square().mean() for level in features))
        grads.append(
            [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        )
    assert len(grads[0]) > 50
    for ours, torchs in zip(*grads, strict=True):
        assert (ours - torchs).norm() <= 1e-4 * torchs.norm() + 1e-7
