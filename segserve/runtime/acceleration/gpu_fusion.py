"""Conv-BN fusion for a GPU: norms are merged into the convolutions, and activations run in place.

`cpu_fusion.py` is the counterpart for the CPU. A CUDA convolution accepts only a bias of its own
dtype. So the bias is added after the convolution, in float32, like the shift of the norm before. A
bias that is rounded to bf16 would shift all pixels by the same error.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..errors import is_out_of_memory
from .fusion import Activation, fuse
from .verified import OptimizationError, is_device_failure, verified

logger = logging.getLogger(__name__)

# As in `cpu_fusion.py`, except for float32: cuDNN computes float32 convolutions in TF32, with 10
# bits of mantissa.
_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.1}

# Keyed by oneDNN's names, as in `fusion.py`.
_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "hardtanh": F.hardtanh_,
    "hardswish": partial(F.hardswish, inplace=True),
    "swish": partial(F.silu, inplace=True),
}


class GpuFusedConv2d(nn.Module):
    """A convolution merged with the norm and the activation after it.

    Shape: as of `conv`, which becomes part of this module. Computes in `dtype` and adds a float32
        bias.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        conv.weight, conv.bias = nn.Parameter(weight.to(dtype), requires_grad=False), None
        self._conv = conv
        self._bias = None
        if bias is not None:
            self._bias = nn.Parameter(bias.float().view(-1, 1, 1), requires_grad=False)
        name, parameters, _ = activation
        self._activation, self._bounds = _IN_PLACE[name], parameters

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self._conv(x)
        if self._bias is not None:
            convolved.add_(self._bias)
        return self._activation(convolved, *self._bounds)


def gpu_fused_network(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Applies conv-BN fusion for inference on the device, with convolutions in `dtype`. Does not
    change `network`.

    If the logits differ from the network's logits on the CPU, it logs a warning and returns the
    network itself, which is slower but correct.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).

    Raises:
        RuntimeError: the device cannot be used, or has no memory left.
    """

    def fused(copied: nn.Module, image: Tensor) -> "_Compared":
        # Inference tensors cannot be moved later.
        with torch.inference_mode(mode=False), torch.no_grad():
            fuse(copied, image, partial(GpuFusedConv2d, dtype=dtype))
            return _Compared(copied.to(device).to(memory_format=torch.channels_last), device)

    try:
        return verified(network, fused, dtype, _TOLERANCES[dtype]).network
    except OptimizationError as error:
        cause = error.__cause__
        if cause is not None and (is_device_failure(cause) or is_out_of_memory(cause)):
            raise cause from None  # not caused by the fusion
        logger.warning("the network runs unfused on %s, which is slower: %s", device, error)
        return network


class _Compared(nn.Module):
    """A network on a device that takes images from the CPU and returns logits to it."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._device = device

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image.to(self._device)).cpu()
        if not logits.isfinite().all():
            raise ValueError("its logits are not finite")
        return logits
