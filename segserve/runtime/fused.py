"""The network as oneDNN computes it best: norms folded into the convolutions, activations computed inside of them.

It is what a compiler makes of such a network, and as fast on a CPU, but needs none: it is ready in a fraction of a
second and takes images of any size, so that no request ever waits for a kernel to be compiled.
"""

import logging
from functools import partial

import torch
from torch import Tensor, nn

from .folding import Activation, Geometry, fold
from .stand_in import TYPICAL_HW, StandInError, stand_in

logger = logging.getLogger(__name__)

# Root mean square of the logits' difference, in standard deviations of the logits.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class FusedConv2d(nn.Module):
    """A convolution with the norm and the activation that follow it, its weights laid out for oneDNN.

    Shape: as of `conv`; computes in `dtype`, and adds a bias of float32, which carries the norm's digits.
    """

    def __init__(
        self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: Activation, *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._geometry = geometry = Geometry.of(conv)
        self._arguments = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.to(dtype).contiguous(memory_format=torch.channels_last),
            *self._arguments,
            [1, conv.in_channels, *TYPICAL_HW],
        )
        self._bias = None if bias is None else bias.float()
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            self._geometry.padded(x), self._weight, self._bias, *self._arguments, *self._activation
        )
        return convolved


def fused_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network for inference on the CPU, its convolutions in `dtype`; the network itself is left as it is.

    Where oneDNN is missing, or does not give the logits that the network gives, that is logged as a warning and the
    network itself returned: it is slower, and right.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
    """

    def fused(copied: nn.Module, image: Tensor) -> nn.Module:
        fold(copied, image, partial(FusedConv2d, dtype=dtype))
        return copied

    try:
        return stand_in(network, fused, dtype, _TOLERANCES[dtype])
    except StandInError as error:
        logger.warning("the network runs unfused, which is slower: %s", error)
        return network
