"""What the parts of `deeplabv3` accept and reject, their shapes, and their parameters."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import deeplabv3
from deeplabv3 import ASPP, ASPPConv, ASPPPooling, CoreNetHead, DeepLabHead, MultiScaleDeepLabHead

LEVEL_CHANNELS = (2, 3, 8, 16)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def aspp(**kwargs):
    return ASPP(**{"in_channels": 6, "atrous_rates": [1, 2], "out_channels": 4} | kwargs)


def deeplab(**kwargs):
    return DeepLabHead(**{"in_channels": 6, "num_classes": 3, "aspp_out_channels": 4} | kwargs)


def corenet(**kwargs):
    return CoreNetHead(**{"in_channels": 6, "num_classes": 3, "aspp_out_channels": 4} | kwargs)


def multiscale(**kwargs):
    small = {
        "level_channels": LEVEL_CHANNELS,
        "num_classes": 3,
        "aspp_in_channels": 6,
        "aspp_out_channels": 4,
    }
    return MultiScaleDeepLabHead(**small | kwargs)


def conv(**kwargs):
    return ASPPConv(**{"in_channels": 6, "out_channels": 4, "dilation": 2} | kwargs)


def pooling(**kwargs):
    return ASPPPooling(**{"in_channels": 6, "out_channels": 4} | kwargs)


def aspp_of(head):
    return head.head[0] if isinstance(head, MultiScaleDeepLabHead) else head[0]


def parameter_count(module):
    return sum(p.numel() for p in module.parameters())


EVERY_HEAD = [
    pytest.param(deeplab, id="deeplab"),
    pytest.param(corenet, id="corenet"),
    pytest.param(multiscale, id="multiscale"),
]
WITH_DROPOUT = [pytest.param(aspp, id="aspp"), *EVERY_HEAD]
EVERY_PART = [pytest.param(conv, id="conv"), pytest.param(pooling, id="pooling"), *WITH_DROPOUT]


# Shapes.


@pytest.mark.parametrize("height_width", [(1, 1), (1, 7), (5, 8)], ids=["1x1", "1x7", "5x8"])
@pytest.mark.parametrize("separable", [False, True], ids=["full", "separable"])
@pytest.mark.parametrize(
    ("build", "out_channels"),
    [
        pytest.param(conv, 4, id="conv"),
        pytest.param(aspp, 4, id="aspp"),
        pytest.param(deeplab, 3, id="deeplab"),
        pytest.param(corenet, 3, id="corenet"),
    ],
)
def test_module_any_size_keeps_height_and_width(build, out_channels, separable, height_width):
    module = build(separable=separable).eval()
    assert module(torch.randn(2, 6, *height_width)).shape == (2, out_channels, *height_width)


@pytest.mark.parametrize(
    "rates",
    [
        pytest.param([], id="none"),
        pytest.param((3,), id="one"),
        pytest.param([6, 12, 18], id="three"),
        pytest.param(range(1, 6), id="five"),
    ],
)
def test_aspp_any_number_of_rates_has_one_atrous_branch_for_each(rates):
    module = aspp(atrous_rates=rates).eval()
    kernels = [(branch[0].kernel_size, branch[0].dilation) for branch in list(module.convs)[1:-1]]
    assert kernels == [((3, 3), (rate, rate)) for rate in rates]
    assert module(torch.randn(2, 6, 5, 7)).shape == (2, 4, 5, 7)


def test_aspp_no_rates_projects_the_pointwise_and_the_pooled_branch():
    module = aspp(atrous_rates=[]).eval()
    x = torch.randn(2, 6, 5, 7)
    pointwise, pooled = module.convs
    torch.testing.assert_close(
        pooled(x), pooled(x)[:, :, :1, :1].expand(2, 4, 5, 7)
    )  # one value a channel
    torch.testing.assert_close(
        module(x), module.project(torch.cat([pointwise(x), pooled(x)], dim=1))
    )


@pytest.mark.parametrize(
    ("build", "rates", "dropout"),
    [
        pytest.param(deeplab, (12, 24, 36), 0.5, id="deeplab"),
        pytest.param(corenet, (6, 12, 18), 0.1, id="corenet"),
        pytest.param(multiscale, (6, 12, 18), 0.1, id="multiscale"),
    ],
)
def test_head_defaults_are_those_of_its_source(build, rates, dropout):
    inner = aspp_of(build())
    assert tuple(branch[0].dilation[0] for branch in list(inner.convs)[1:-1]) == rates
    assert inner.project[-1].p == dropout


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(lambda: DeepLabHead(6, 3), id="deeplab"),
        pytest.param(lambda: CoreNetHead(6, 3), id="corenet"),
        pytest.param(lambda: MultiScaleDeepLabHead(LEVEL_CHANNELS, 3), id="multiscale"),
    ],
)
def test_head_default_aspp_has_256_channels(head):
    assert aspp_of(head()).project[0].out_channels == 256


def test_multiscale_head_default_fusion_has_512_channels():
    assert MultiScaleDeepLabHead(LEVEL_CHANNELS, 3).fuse[0].out_channels == 512


def test_corenet_head_is_aspp_straight_into_a_pointwise_classifier():
    head = corenet().eval()
    x = torch.randn(2, 6, 5, 7)
    inner, classifier = head
    expected = torch.einsum("oi,nihw->nohw", classifier.weight[:, :, 0, 0], inner(x))
    torch.testing.assert_close(head(x), expected + classifier.bias[:, None, None])


# Parameters.


def test_aspp_conv_separable_equals_the_full_kernel_it_factors():
    separable = conv(separable=True).eval()
    depthwise, pointwise, norm, relu = separable
    kernel = pointwise.weight * depthwise.weight[:, 0]
    x = torch.randn(2, 6, 7, 9)
    torch.testing.assert_close(separable(x), relu(norm(F.conv2d(x, kernel, padding=2, dilation=2))))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # Batch norms have 2 * 4. The 3x3 kernel: full 6 * 4 * 9; separable 6 * 9 depthwise, 6 * 4
        # pointwise.
        pytest.param(conv, 216 + 8, id="conv-full"),
        pytest.param(lambda: conv(separable=True), 54 + 24 + 8, id="conv-separable"),
        # 1x1 and pooled branch 6 * 4 each, two rates, projection (4 branches * 4) * 4.
        pytest.param(aspp, 2 * 32 + 2 * 224 + 64 + 8, id="aspp-full"),
        pytest.param(lambda: aspp(separable=True), 2 * 32 + 2 * 86 + 64 + 8, id="aspp-separable"),
        pytest.param(lambda: aspp(atrous_rates=[]), 2 * 32 + 32 + 8, id="aspp-no-rates"),
        # Three rates, so a projection of 5 * 4 * 4; then 3x3 kernel 4 * 4 * 9; classifier 4 * 3 and
        # 3 biases.
        pytest.param(
            lambda: deeplab(separable=True),
            2 * 32 + 3 * 86 + 80 + 8 + 144 + 8 + 15,
            id="deeplab-separable",
        ),
        pytest.param(
            lambda: corenet(separable=True), 2 * 32 + 3 * 86 + 80 + 8 + 15, id="corenet-separable"
        ),
        # Fused channels 2 * 4 + 3 + 8 / 4 + 16 / 16 = 14, brought to 6 with a batch norm of 2 * 6.
        pytest.param(
            lambda: multiscale(separable=True),
            14 * 6 + 12 + 2 * 32 + 3 * 86 + 80 + 8 + 15,
            id="multiscale-separable",
        ),
        # The published head: seven batch norms of 2 * 256.
        pytest.param(
            lambda: DeepLabHead(2048, 21),
            (2 + 3 * 9) * 2048 * 256 + (5 + 9) * 256 * 256 + 7 * 512 + 256 * 21 + 21,
            id="deeplab-of-resnet",
        ),
    ],
)
def test_module_parameter_count_is_the_sum_of_its_kernels(build, expected):
    assert parameter_count(build()) == expected


# What is rejected.


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, float("nan")], ids=str)
@pytest.mark.parametrize("build", WITH_DROPOUT)
def test_module_dropout_outside_range_is_rejected(build, dropout):
    with pytest.raises(ValueError, match=rf"^dropout: got {dropout}, allowed is 0 <= dropout < 1$"):
        build(dropout=dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.999], ids=str)
@pytest.mark.parametrize("build", EVERY_HEAD)
def test_head_dropout_within_range_is_kept(build, dropout):
    assert aspp_of(build(dropout=dropout)).project[-1].p == dropout


@pytest.mark.parametrize("count", [0, -1], ids=str)
@pytest.mark.parametrize(
    ("build", "keyword", "named"),
    [
        pytest.param(conv, "in_channels", "in_channels", id="conv-in"),
        pytest.param(conv, "out_channels", "out_channels", id="conv-out"),
        pytest.param(conv, "dilation", "dilation", id="conv-dilation"),
        pytest.param(pooling, "in_channels", "in_channels", id="pooling-in"),
        pytest.param(pooling, "out_channels", "out_channels", id="pooling-out"),
        pytest.param(aspp, "in_channels", "in_channels", id="aspp-in"),
        pytest.param(aspp, "out_channels", "out_channels", id="aspp-out"),
        pytest.param(deeplab, "in_channels", "in_channels", id="deeplab-in"),
        pytest.param(deeplab, "aspp_out_channels", "out_channels", id="deeplab-aspp-out"),
        pytest.param(deeplab, "num_classes", "num_classes", id="deeplab-classes"),
        pytest.param(corenet, "in_channels", "in_channels", id="corenet-in"),
        pytest.param(corenet, "aspp_out_channels", "out_channels", id="corenet-aspp-out"),
        pytest.param(corenet, "num_classes", "num_classes", id="corenet-classes"),
        pytest.param(multiscale, "aspp_in_channels", "out_channels", id="multiscale-aspp-in"),
        pytest.param(multiscale, "aspp_out_channels", "out_channels", id="multiscale-aspp-out"),
        pytest.param(multiscale, "num_classes", "num_classes", id="multiscale-classes"),
        pytest.param(
            multiscale, "output_upsample_factor", "output_upsample_factor", id="multiscale-factor"
        ),
    ],
)
def test_module_count_below_one_is_rejected(build, keyword, named, count):
    with pytest.raises(ValueError, match=rf"^{named}: got {count}, expected at least 1$"):
        build(**{keyword: count})


@pytest.mark.parametrize(
    "rates", [[0], [6, 0, 18], [6, 12, -1]], ids=["zero", "zero-amid-good", "negative"]
)
@pytest.mark.parametrize("build", WITH_DROPOUT)
def test_module_rate_below_one_is_rejected(build, rates):
    with pytest.raises(ValueError, match=rf"^dilation: got {min(rates)}, expected at least 1$"):
        build(atrous_rates=rates)


@pytest.mark.parametrize("build", EVERY_PART)
def test_module_unknown_keyword_is_rejected(build):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropuot'"):
        build(dropuot=0.1)


# The file on its own.


def test_deeplabv3_file_imports_torch_and_the_standard_library_alone():
    tree = ast.parse(Path(deeplabv3.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        "." * node.level + (node.module or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    roots = {name if name.startswith(".") else name.partition(".")[0] for name in imported}
    assert "torch" in roots
    assert roots - {"torch"} <= sys.stdlib_module_names
