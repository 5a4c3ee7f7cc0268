"""Networks of every kind, with random weights."""

import torch
from torch import nn

from segserve.runtime.record import Architecture

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
