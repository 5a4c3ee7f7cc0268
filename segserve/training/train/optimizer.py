"""Optimizer, learning rate schedule and averages of weights."""

import math
from copy import deepcopy
from itertools import chain
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ...recipe import Recipe
from ...runtime.network.weights import SegmentationNetwork

_MOMENTUM, _WEIGHT_DECAY, _POLY_POWER = 0.9, 1e-4, 0.9

Network = TypeVar("Network", bound=nn.Module)


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
