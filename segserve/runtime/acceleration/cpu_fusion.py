"""Conv-BN fusion for a CPU: oneDNN computes norms and activations as part of the convolutions.

Used where OpenVINO is not installed or does not support the network, see `openvino_network.py`.
"""

import logging
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from .fusion import Activation, Geometry, fuse
from .verified import OptimizationError, verified

logger = logging.getLogger(__name__)

# Packed copies of the weights, by input size and number of threads: the most, and their memory.
_MOST_COPIES, _PACKED_BYTES = 4, 2**26

# RMS difference of the logits, in standard deviations of the logits.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class FusedConv2d(nn.Module):
    """A convolution merged with the norm and the activation after it.

    Shape: as of `conv`. Computes in `dtype` and adds a float32 bias, which keeps the precision of
        the norm.

    oneDNN reorders weights that are not in the memory layout of its kernel. Which layout that is
    depends on the processor, on the input's size and on the number of threads, so packed copies are
    kept for the `copies` combinations that were used last. A copy for another size costs more than
    none: its reorder took three quarters of the network's time on AVX2.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        *,
        dtype: torch.dtype,
        copies: int,
    ) -> None:
        super().__init__()
        self._geometry = geometry = Geometry.of(conv)
        self._arguments = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
        self._weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self._packed = lru_cache(copies)(self._pack)
        self._bias = None if bias is None else bias.float()
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self._geometry.padded(x)
        weight = self._packed(x.shape, torch.get_num_threads())
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self._bias, *self._arguments, *self._activation
        )
        return convolved

    def _pack(self, input_shape: torch.Size, _threads: int) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self._weight, *self._arguments, list(input_shape)
        )
        return packed


def cpu_fused_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Applies conv-BN fusion for inference on the CPU, with convolutions in `dtype`. Does not
    change `network`.

    If oneDNN is missing or its logits differ from the network's, it logs a warning and returns the
    network itself, which is slower but correct.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).
    """
    size_bytes = sum(weight.numel() for weight in network.parameters()) * dtype.itemsize
    copies = min(_MOST_COPIES, _PACKED_BYTES // max(size_bytes, 1))

    def fused(copied: nn.Module, image: Tensor) -> nn.Module:
        fuse(copied, image, partial(FusedConv2d, dtype=dtype, copies=copies))
        return copied

    try:
        return verified(network, fused, dtype, TOLERANCES[dtype])
    except OptimizationError as error:
        logger.warning("the network runs unfused, which is slower: %s", error)
        return network
