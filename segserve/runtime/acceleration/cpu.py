"""The fastest form of the network that computes the same logits on this processor."""

import logging

import torch
from torch import nn

from .cpu_fusion import TOLERANCES, cpu_fused_network
from .openvino_network import OpenVinoNetwork
from .verified import OptimizationError, verified

logger = logging.getLogger(__name__)


def cpu_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network compiled by OpenVINO. Otherwise, with one warning, the network with conv-BN
    fusion. Does not change `network`.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
        dtype: of the multiplications, float32 or bfloat16.
    """
    try:
        return verified(
            network, lambda copied, _: OpenVinoNetwork(copied, dtype), dtype, TOLERANCES[dtype]
        )
    except OptimizationError as error:
        logger.warning("the network runs without OpenVINO, which is slower: %s", error)
        return cpu_fused_network(network, dtype)
