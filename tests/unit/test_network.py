"""Networks of every head on backbones of every make; what cannot be built is reported in the
record's words.
"""

import pytest
import torch
from torch import nn
from torchvision.models import segmentation

from segserve.runtime.errors import ModelError
from segserve.runtime.network import build_network
from segserve.runtime.record import Architecture

HEIGHT_PX, WIDTH_PX = 64, 96


def built(**fields):
    torch.manual_seed(0)
    return build_network(Architecture(aspp_out_channels=8, **fields), num_classes=3).eval()


def image():
    return torch.randn(1, 3, HEIGHT_PX, WIDTH_PX, generator=torch.Generator().manual_seed(0))


# Levels

BACKBONES = {
    "strides from 2": {"backbone": "test_efficientnet"},
    "strides from 4": {"backbone": "test_convnext"},
    "strides from 1": {"backbone": "dla34", "output_stride": 32},
    "levels of (N, H, W, C)": {"backbone": "test_mambaout", "output_stride": 32},
    "torchvision resnet": {"backbone": "torchvision.resnet50"},
    "torchvision mobilenet": {"backbone": "torchvision.mobilenet_v3_large"},
}


@pytest.mark.parametrize("head", ["deeplabv3", "corenet", "multiscale"])
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES.keys())
@torch.inference_mode()
def test_network_logits_have_the_stride_that_the_architecture_says(backbone, head):
    architecture = Architecture(head=head, aspp_out_channels=8, **backbone)
    network = build_network(architecture, num_classes=3).eval()
    stride = architecture.logits_stride
    assert stride == (8 if head == "multiscale" else architecture.output_stride)
    assert network(image()).shape == (1, 3, HEIGHT_PX // stride, WIDTH_PX // stride)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_convnext", "torchvision.resnet50"])
@torch.inference_mode()
def test_network_output_stride_is_that_of_the_last_level(backbone, stride):
    network = built(backbone=backbone, output_stride=stride)
    assert network.backbone(image())[-1].shape[-2:] == (HEIGHT_PX // stride, WIDTH_PX // stride)
    assert network(image()).shape[-2:] == (HEIGHT_PX // stride, WIDTH_PX // stride)


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize(("padding", "center_px"), [("default", 0), ("centered", 7)])
@torch.inference_mode()
def test_network_padding_centered_puts_a_logit_at_the_center_of_its_cell(
    padding, center_px, expanded
):
    backbone = built(
        backbone="mobilenetv2_050", head="corenet", padding=padding, use_l5_exp=expanded
    ).backbone
    for module in (
        backbone.modules()
    ):  # every 3x3 convolution hands on the pixel in its middle, every 1x1 the mean
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()
            module.weight[..., module.kernel_size[0] // 2, module.kernel_size[1] // 2] = (
                1 / module.weight.shape[1]
            )
    columns = torch.arange(160.0).expand(1, 3, 64, 160)
    positions = backbone(columns / 1e6)[-1] / backbone(torch.full_like(columns, 1e-6))[-1]
    expected = 16 * torch.arange(10.0) + center_px
    torch.testing.assert_close(positions[0, 0, 2, 1:], expected[1:], rtol=1e-3, atol=1e-3)


def test_network_padding_centered_of_strides_parallel_is_rejected():
    with pytest.raises(
        ModelError, match="backbone resnet18: padding centered needs consecutive 3x3 convolutions"
    ):
        built(backbone="resnet18", padding="centered")


def test_network_padding_centered_of_a_torchvision_backbone_is_rejected():
    with pytest.raises(ModelError, match="padding is for timm's backbones"):
        built(backbone="torchvision.mobilenet_v3_large", padding="centered")


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES.keys())
@torch.inference_mode()
def test_network_multiscale_reads_the_levels_of_strides_4_to_32(backbone):
    network = built(head="multiscale", **{**backbone, "output_stride": 32})
    widths = [level.shape[-1] for level in network.backbone(image())]
    assert widths == [WIDTH_PX // stride for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize(
    ("backbone", "channels", "expanded"),
    [
        ("test_efficientnet", 64, 256),
        ("mobilenetv2_050", 160, 1280),
        ("torchvision.mobilenet_v3_large", 160, 960),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("head", ["corenet", "multiscale"])
@torch.inference_mode()
def test_network_expansion_takes_the_place_of_the_last_level(backbone, channels, expanded, head):
    plain, wide = (built(backbone=backbone, head=head, use_l5_exp=use) for use in (False, True))
    plain_levels, wide_levels = plain.backbone(image()), wide.backbone(image())
    assert (plain_levels[-1].shape[1], wide_levels[-1].shape[1]) == (channels, expanded)
    assert [level.shape for level in plain_levels[:-1]] == [
        level.shape for level in wide_levels[:-1]
    ]
    assert wide(image()).shape == plain(image()).shape


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@torch.inference_mode()
def test_network_multiscale_upsamples_its_logits(factor):
    architecture = Architecture(
        backbone="test_efficientnet",
        head="multiscale",
        aspp_out_channels=8,
        output_upsample_factor=factor,
    )
    assert architecture.logits_stride == 8 // factor
    logits = build_network(architecture, num_classes=3).eval()(image())
    assert logits.shape[-2:] == (HEIGHT_PX * factor // 8, WIDTH_PX * factor // 8)


def test_network_parameters_of_the_record_reach_the_head():
    network = built(
        backbone="test_efficientnet", head="corenet", aspp_rates=(3, 5), aspp_sep_conv=True
    )
    aspp = network.head[0]
    assert [branch[0].dilation for branch in list(aspp.convs)[1:-1]] == [(3, 3), (5, 5)]
    assert all(branch[0].groups == branch[0].in_channels for branch in list(aspp.convs)[1:-1])
    assert aspp.project[-1].p == 0.1
    fused = built(backbone="test_efficientnet", head="multiscale", aspp_in_channels=24)
    assert fused.head.fuse[0].out_channels == 24


# The auxiliary head


@pytest.mark.parametrize(
    ("fields", "aux_hw"),
    [
        pytest.param({"backbone": "test_efficientnet"}, (4, 6), id="timm"),
        pytest.param({"backbone": "test_convnext", "output_stride": 32}, (4, 6), id="four levels"),
        pytest.param(
            {"backbone": "test_efficientnet", "head": "multiscale"}, (4, 6), id="multiscale"
        ),
        pytest.param({"backbone": "test_efficientnet", "use_l5_exp": True}, (4, 6), id="expanded"),
        pytest.param(
            {"backbone": "torchvision.resnet50", "output_stride": 8},
            (8, 12),
            id="torchvision resnet",
        ),
        pytest.param(
            {"backbone": "torchvision.mobilenet_v3_large"}, (8, 12), id="torchvision mobilenet"
        ),
    ],
)
@torch.inference_mode()
def test_build_network_auxiliary_head_fits_the_level_before_the_last(fields, aux_hw):
    network = built(aux_head=True, **fields)
    assert network.aux_head(network.backbone(image())[-2]).shape == (1, 3, *aux_hw)


def test_forward_does_not_compute_the_auxiliary_head():
    network = built(backbone="test_efficientnet", aux_head=True)
    network.aux_head = nn.Conv2d(999, 1, 1)  # would fail
    network(image())


# torchvision's own models


@pytest.mark.parametrize(
    ("builder", "fields"),
    [
        ("deeplabv3_resnet50", {"backbone": "torchvision.resnet50", "output_stride": 8}),
        ("deeplabv3_resnet101", {"backbone": "torchvision.resnet101", "output_stride": 8}),
        (
            "deeplabv3_mobilenet_v3_large",
            {"backbone": "torchvision.mobilenet_v3_large", "use_l5_exp": True},
        ),
    ],
    ids=["resnet50", "resnet101", "mobilenet_v3_large"],
)
def test_network_of_a_published_architecture_has_torchvisions_names_and_shapes(builder, fields):
    with torch.device("meta"):
        theirs = getattr(segmentation, builder)(
            weights=None, weights_backbone=None, num_classes=21, aux_loss=True
        )
        ours = build_network(
            Architecture(aux_head=True, aspp_rates=(12, 24, 36), **fields), num_classes=21
        )
    renamed = {"classifier.": "head.", "aux_classifier.": "aux_head.", "backbone.": "backbone."}
    expected = {
        next(
            to + name[len(at) :] for at, to in renamed.items() if name.startswith(at)
        ): tensor.shape
        for name, tensor in theirs.state_dict().items()
    }
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected


# What cannot be built

UNBUILDABLE = {
    "unknown backbone": (
        {"backbone": "resnet999"},
        "backbone resnet999: timm cannot give its levels: .*resnet999",
    ),
    "unknown backbone of torchvision": (
        {"backbone": "torchvision.vgg11"},
        "backbone torchvision.vgg11: torchvision has torchvision.resnet18, .*"
        "torchvision.resnet101, .*",
    ),
    "images of one size": (
        {"backbone": "swin_tiny_patch4_window7_224"},
        "timm cannot give its levels: .*height",
    ),
    "channels that do not divide": (
        {"backbone": "rexnet_100", "head": "multiscale"},
        r"head multiscale on backbone rexnet_100: .*positive multiples of",
    ),
    "levels that it lacks": (
        {"backbone": "test_vit", "head": "multiscale"},
        "head multiscale needs levels: 2, 3, 4, 5; it has 4 ",
    ),
    "no level before the last": (
        {"backbone": "test_vit", "aux_head": True},
        "head deeplabv3 needs levels: two for aux_head; it has 4 ",
    ),
    "stride that cannot be lowered": (
        {"backbone": "test_vit", "output_stride": 8},
        "backbone test_vit: timm cannot lower its stride to 8: set output_stride to 16",
    ),
    "stride beyond the last level": (
        {"backbone": "test_vit", "output_stride": 32},
        "backbone test_vit: got output_stride 32, its last level has 16",
    ),
    "stride that torchvision lacks": (
        {"backbone": "torchvision.mobilenet_v3_large", "output_stride": 8},
        "torchvision.mobilenet_v3_large: got output_stride 8, torchvision gives 16 and 32",
    ),
    "no expansion": (
        {"backbone": "test_resnet", "use_l5_exp": True},
        "backbone test_resnet: no convolution widens its last level, of 96 channels: leave out "
        "use_l5_exp",
    ),
    "no expansion in torchvision's": (
        {"backbone": "torchvision.resnet50", "use_l5_exp": True},
        "no convolution widens its last level, of 2048 channels: leave out use_l5_exp",
    ),
}


@pytest.mark.parametrize(("keys", "message"), UNBUILDABLE.values(), ids=UNBUILDABLE.keys())
def test_build_network_of_an_impossible_architecture_is_a_model_error(keys, message):
    with pytest.raises(ModelError, match=message) as caught:
        build_network(Architecture(**keys), num_classes=3)
    assert "\n" not in str(caught.value)
