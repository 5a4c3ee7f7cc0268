"""`MultiScaleDeepLabHead` against a second computation, written with reshapes and matrix products.

In float64, where both agree to rounding: a shifted pixel or a swapped channel has no tolerance to
    hide in.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.segmentation import deeplabv3 as torchvision_deeplabv3

from deeplabv3 import MultiScaleDeepLabHead

LEVEL_CHANNELS = (2, 3, 8, 32)
RATES = (1, 2)


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    small = MultiScaleDeepLabHead(LEVEL_CHANNELS, 3, RATES, aspp_in_channels=5, aspp_out_channels=4)
    for part in small.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=0.2)
            nn.init.normal_(part.bias, std=0.2)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return small.double().eval()


def random_levels(sizes_hw, batch=2):
    torch.manual_seed(1)
    pairs = zip(LEVEL_CHANNELS, sizes_hw, strict=True)
    return [
        torch.randn(batch, channels, *size_hw, dtype=torch.float64) for channels, size_hw in pairs
    ]


def backbone_sizes_hw(height_px, width_px):
    """Sizes of levels 2 to 5 as a backbone of strides 4, 8, 16 and 32 gives them."""
    return [(-(-height_px // stride), -(-width_px // stride)) for stride in (4, 8, 16, 32)]


# The second computation.


def expected_fused(levels):
    level2, level3, level4, level5 = levels
    size_hw = level3.shape[-2:]
    met = [
        unshuffled_by_2(replicated_to_even(level2)),
        level3,
        shuffled(level4, 2),
        shuffled(level5, 4),
    ]
    return torch.cat([resized(level, size_hw) for level in met], dim=1)


def expected_logits(head, levels):
    """The fusion and the classifier as matrix products, torchvision's ASPP between them."""
    conv, norm, _ = head.fuse
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fused = pointwise(expected_fused(levels), conv.weight, torch.zeros(5, dtype=torch.float64))
    fused = (fused - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[
        :, None, None
    ]
    inner, classifier = head.head
    aspp = torchvision_deeplabv3.ASPP(5, list(RATES), 4).double().eval()
    aspp.load_state_dict(inner.state_dict(), strict=True)
    return pointwise(aspp(fused.clamp(min=0)), classifier.weight, classifier.bias)


def pointwise(x, weight, bias):
    return torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x) + bias[:, None, None]


def replicated_to_even(x):
    if x.shape[-2] % 2:
        x = torch.cat([x, x[..., -1:, :]], dim=-2)
    if x.shape[-1] % 2:
        x = torch.cat([x, x[..., -1:]], dim=-1)
    return x


def unshuffled_by_2(x):
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // 2, 2, w // 2, 2)
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(n, c * 4, h // 2, w // 2)
    )


def shuffled(x, factor):
    n, c, h, w = x.shape
    blocks = x.reshape(n, c // factor**2, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // factor**2, h * factor, w * factor)


def resized(x, size_hw):
    rows, columns = (
        bilinear_matrix(x.shape[-2], size_hw[0]),
        bilinear_matrix(x.shape[-1], size_hw[1]),
    )
    return rows @ x @ columns.T


def bilinear_matrix(length_in, length_out):
    """Row i holds the weights of the inputs around the centre of output i (align_corners=False)."""
    matrix = torch.zeros(length_out, length_in, dtype=torch.float64)
    for i in range(length_out):
        centre = max((i + 0.5) * length_in / length_out - 0.5, 0.0)
        low = int(centre)
        matrix[i, low] += 1 - (centre - low)
        matrix[i, min(low + 1, length_in - 1)] += centre - low
    return matrix


@torch.inference_mode()
def assert_matches_second_computation(head, levels):
    got, expected = head(levels), expected_logits(head, levels)
    assert got.shape == (levels[1].shape[0], 3, *levels[1].shape[-2:])
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


# Values.


@pytest.mark.parametrize(
    "sizes_hw",
    [
        pytest.param([(16, 24), (8, 12), (4, 6), (2, 3)], id="all-divide"),
        pytest.param([(15, 24), (8, 12), (4, 6), (2, 3)], id="level2-odd-height"),
        pytest.param([(16, 23), (8, 12), (4, 6), (2, 3)], id="level2-odd-width"),
        pytest.param([(15, 23), (8, 12), (4, 6), (2, 3)], id="level2-odd-both"),
        pytest.param([(10, 30), (8, 12), (4, 6), (2, 3)], id="level2-disagrees"),
        pytest.param([(16, 24), (8, 12), (5, 5), (2, 3)], id="level4-disagrees"),
        pytest.param([(16, 24), (8, 12), (4, 6), (3, 1)], id="level5-disagrees"),
        pytest.param([(16, 24), (8, 12), (4, 7), (2, 4)], id="width-alone-disagrees"),
        pytest.param([(16, 24), (8, 12), (8, 12), (8, 12)], id="backbone-of-output-stride-8"),
        pytest.param([(2, 2), (1, 1), (1, 1), (1, 1)], id="one-pixel"),
    ],
)
def test_multiscale_head_named_sizes_equals_second_computation(head, sizes_hw):
    assert_matches_second_computation(head, random_levels(sizes_hw))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(height_px=st.integers(1, 130), width_px=st.integers(1, 130))
@example(height_px=65, width_px=97)
def test_multiscale_head_any_image_size_equals_second_computation(head, height_px, width_px):
    assert_matches_second_computation(
        head, random_levels(backbone_sizes_hw(height_px, width_px), batch=1)
    )


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(sizes_hw=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=4))
def test_multiscale_head_unrelated_level_sizes_equals_second_computation(head, sizes_hw):
    assert_matches_second_computation(head, random_levels(sizes_hw, batch=1))


def test_multiscale_head_levels_of_two_sizes_in_turn_leak_nothing_between_calls(head):
    first, second = (random_levels(backbone_sizes_hw(*size_hw)) for size_hw in ((64, 96), (65, 33)))
    before = head(first)
    head(second)
    assert torch.equal(head(first), before)


def test_multiscale_head_given_levels_leaves_them_unchanged(head):
    levels = random_levels(backbone_sizes_hw(65, 33))
    copies = [level.clone() for level in levels]
    head(levels)
    assert all(torch.equal(level, kept) for level, kept in zip(levels, copies, strict=True))


def test_multiscale_head_every_level_receives_a_gradient(head):
    levels = [level.requires_grad_() for level in random_levels(backbone_sizes_hw(65, 33))]
    gradients = torch.autograd.grad(head(levels).square().sum(), levels)
    assert all(gradient.count_nonzero() > 0 for gradient in gradients)


def test_multiscale_head_training_batch_of_one_runs():
    torch.manual_seed(0)
    head = MultiScaleDeepLabHead(LEVEL_CHANNELS, 3, RATES, aspp_in_channels=5, aspp_out_channels=4)
    levels = [level.float() for level in random_levels(backbone_sizes_hw(65, 33), batch=1)]
    assert head.training
    assert head(levels).shape == (1, 3, 9, 5)


@pytest.mark.parametrize("factor", [2, 3, 8], ids=str)
@torch.inference_mode()
def test_multiscale_head_upsampled_is_the_plain_one_resized(head, factor):
    upsampled = MultiScaleDeepLabHead(
        LEVEL_CHANNELS,
        3,
        RATES,
        aspp_in_channels=5,
        aspp_out_channels=4,
        output_upsample_factor=factor,
    )
    upsampled.double().eval().load_state_dict(head.state_dict(), strict=True)
    levels = random_levels(backbone_sizes_hw(65, 33))
    plain = head(levels)
    expected = resized(plain, (plain.shape[-2] * factor, plain.shape[-1] * factor))
    torch.testing.assert_close(upsampled(levels), expected, rtol=0, atol=1e-10)


# What is rejected.


@pytest.mark.parametrize("count", [0, 3, 5], ids=str)
def test_multiscale_head_wrong_number_of_levels_is_rejected(head, count):
    levels = random_levels(backbone_sizes_hw(64, 64))
    with pytest.raises(
        ValueError, match=rf"^levels: got {count} tensors, expected 4 \(levels 2, 3, 4 and 5\)$"
    ):
        head([*levels, levels[-1]][:count])


@pytest.mark.parametrize("count", [0, 3, 5], ids=str)
def test_multiscale_head_wrong_number_of_channel_counts_is_rejected(count):
    with pytest.raises(
        ValueError, match=r"^level_channels: got \(.*\), expected those of levels 2 to 5"
    ):
        MultiScaleDeepLabHead([16] * count, 3)


@pytest.mark.parametrize(
    "level_channels",
    [
        pytest.param((0, 3, 8, 16), id="level2-none"),
        pytest.param((2, 0, 8, 16), id="level3-none"),
        pytest.param((2, 3, 0, 16), id="level4-none"),
        pytest.param((2, 3, 8, 0), id="level5-none"),
        pytest.param((2, 3, 6, 16), id="level4-not-by-4"),
        pytest.param((2, 3, 8, 24), id="level5-by-4-and-8-not-by-16"),
        pytest.param((2, 3, 8, -16), id="level5-negative"),
    ],
)
def test_multiscale_head_channels_that_do_not_divide_are_rejected(level_channels):
    with pytest.raises(ValueError, match=r"positive multiples of \(1, 1, 4, 16\)$"):
        MultiScaleDeepLabHead(level_channels, 3)
