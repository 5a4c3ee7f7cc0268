"""Loss, optimizer, learning rate schedule and averages of weights."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..recipe import Recipe
from ..runtime.errors import ModelError
from ..runtime.network.weights import SegmentationNetwork
from .data import IGNORED

_MOMENTUM, _WEIGHT_DECAY, _POLY_POWER = 0.9, 1e-4, 0.9

Network = TypeVar("Network", bound=nn.Module)
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class SegmentationLoss(nn.Module):
    """A network and the loss of its logits in one module, as data parallelism needs it.

    Shape: normalised images, float32 (N, 3, S, S), and label maps, uint8 (N, S, S), 255 for ignored
    pixels -> the loss, float32 (): 0 if every pixel is ignored.
    """

    _class_weights: Tensor | None

    def __init__(self, network: SegmentationNetwork, recipe: Recipe, labels: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._recipe = recipe
        given = recipe.class_weights
        check_class_weights(given, labels)
        weights = torch.tensor([given.get(label, 1.0) for label in labels]) if given else None
        self.register_buffer("_class_weights", weights, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        dtype = _AUTOCAST[self._recipe.precision]
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self._cross_entropy(self.network(images), labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy, in float32, at every `loss_stride`th pixel of every such row."""
        stride = self._recipe.loss_stride
        truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
        logits = F.interpolate(
            logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False
        )
        if not (truth != IGNORED).any():
            return logits.sum() * 0  # the mean over no pixel would be NaN
        return F.cross_entropy(logits, truth, self._class_weights, ignore_index=IGNORED)


def check_class_weights(given: Mapping[str, float], labels: Sequence[str]) -> None:
    """Raises ModelError if a recipe gives a weight to a class that the model does not have."""
    unknown = sorted(given.keys() - set(labels))
    if unknown:
        raise ModelError(
            f"class_weights: {', '.join(unknown)} is none of the classes {', '.join(labels)}"
        )


def build_optimizer(network: SegmentationNetwork, recipe: Recipe) -> Optimizer:
    """Builds the optimizer, with one learning rate for the backbone and one for the heads.

    Biases and batch norms have no weight decay.
    """
    heads = chain.from_iterable(
        part.parameters() for name, part in network.named_children() if name != "backbone"
    )
    parts = (list(network.backbone.parameters()), recipe.backbone_lr), (list(heads), recipe.head_lr)
    groups = [
        {
            "params": [parameter for parameter in parameters if (parameter.ndim > 1) == decayed],
            "lr": lr,
            "weight_decay": _WEIGHT_DECAY if decayed else 0.0,
        }
        for parameters, lr in parts
        for decayed in (True, False)
    ]
    if recipe.optimizer == "adamw":
        return AdamW(groups)
    return SGD(groups, momentum=_MOMENTUM, nesterov=True)


def build_schedule(optimizer: Optimizer, recipe: Recipe, finished_steps: int) -> LambdaLR:
    """Builds the schedule: linear warm-up, then poly or cosine.

    poly is (1 - step / steps) ** 0.9 (Chen et al., arXiv:1606.00915, section 4.1). cosine is half a
    period (Loshchilov and Hutter, arXiv:1608.03983).
    """
    length = recipe.schedule_steps or recipe.steps

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
        done = min(step, length) / length
        if recipe.schedule == "cosine":
            return warmup * (1 + math.cos(math.pi * done)) / 2
        return float(warmup * (1 - done) ** _POLY_POWER)

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=finished_steps - 1)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it as an exponential moving average.

    The running statistics of batch norms are averaged too. The decay grows with the steps, as
    (1 + step) / (10 + step) up to `decay`, so that a short run does not keep the untrained weights.
    """

    def follow(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return average.lerp(current, 1 - kept)

    return AveragedModel(network, avg_fn=follow, use_buffers=True)


def blended(network: Network, other: nn.Module, share: float) -> Network:
    """A copy of the network with `share` of the weights and running statistics of `other`."""
    copy, others = deepcopy(network), other.state_dict()
    copy.load_state_dict(
        {
            name: own.lerp(others[name], share) if own.is_floating_point() else own
            for name, own in network.state_dict().items()
        }
    )
    return copy
