"""The network as a GPU computes it best: norms folded into the convolutions, activations computed in place.

What `fused.py` is to the CPU. CUDA's convolutions take no bias of another dtype than their own, hence it is added after
them, in float32 as the norm's shift was: rounded to bf16 beforehand, it would be off by the same amount everywhere.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from .device import is_device_failure, is_out_of_memory
from .folding import Activation, fold
from .stand_in import StandInError, stand_in

logger = logging.getLogger(__name__)

# As in `fused.py`, but for float32, whose convolutions cuDNN computes with the 10 bits of TF32.
_TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.1}

# By oneDNN's names, as `folding` tells them.
_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "hardtanh": F.hardtanh_,
    "hardswish": partial(F.hardswish, inplace=True),
    "swish": partial(F.silu, inplace=True),
}


class FoldedConv2d(nn.Module):
    """A convolution with the norm and the activation that follow it.

    Shape: as of `conv`, which it takes over; computes in `dtype`, and adds a bias of float32.
    """

    def __init__(
        self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, activation: Activation, *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        conv.weight, conv.bias = nn.Parameter(weight.to(dtype), requires_grad=False), None
        self._conv = conv
        self._bias = None if bias is None else nn.Parameter(bias.float().view(-1, 1, 1), requires_grad=False)
        name, parameters, _ = activation
        self._activation, self._bounds = _IN_PLACE[name], parameters

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self._conv(x)
        if self._bias is not None:
            convolved.add_(self._bias)
        return self._activation(convolved, *self._bounds)


def folded_network(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The same network for inference on the device, its convolutions in `dtype`; the network itself is left as it is.

    Where it does not give the logits there that the network gives on the CPU, that is logged as a warning and the
    network itself returned: it is slower, and right.

    Args:
        network: float32 on the CPU, in evaluation mode; (N, 3, H, W) -> (N, classes, h, w).

    Raises:
        RuntimeError: the device cannot be used, or has no memory left.
    """

    def folded(copied: nn.Module, image: Tensor) -> "_Compared":
        with torch.inference_mode(mode=False), torch.no_grad():  # tensors of inference cannot be moved afterwards
            fold(copied, image, partial(FoldedConv2d, dtype=dtype))
            return _Compared(copied.to(device).to(memory_format=torch.channels_last), device)

    try:
        return stand_in(network, folded, dtype, _TOLERANCES[dtype]).network
    except StandInError as error:
        cause = error.__cause__
        if cause is not None and (is_device_failure(cause) or is_out_of_memory(cause)):
            raise cause from None  # that concerns more than the folding
        logger.warning("the network runs unfolded on %s, which is slower: %s", device, error)
        return network


class _Compared(nn.Module):
    """A network on a device as it is compared: its images come from the CPU, its logits go there."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._device = device

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image.to(self._device)).cpu()
        if not logits.isfinite().all():
            raise ValueError("its logits are not finite")
        return logits
