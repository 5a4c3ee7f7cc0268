"""Optimizer and learning rate schedule."""

import math
from itertools import chain

from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ...runtime.network.build import SegmentationNetwork
from .recipe import Recipe


def build_optimizer(network: SegmentationNetwork, recipe: Recipe) -> Optimizer:
    """One learning rate for the backbone, one for all else; weight decay spares biases and batch
    norms.
    """
    heads = chain.from_iterable(
        part.parameters() for name, part in network.named_children() if name != "backbone"
    )
    parts = (list(network.backbone.parameters()), recipe.backbone_lr), (list(heads), recipe.head_lr)
    groups = [
        {
            "params": [parameter for parameter in parameters if (parameter.ndim > 1) == decayed],
            "lr": lr,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for parameters, lr in parts
        for decayed in (True, False)
    ]
    if recipe.optimizer == "adamw":
        return AdamW(groups)
    return SGD(groups, momentum=recipe.momentum, nesterov=True)


def build_schedule(optimizer: Optimizer, recipe: Recipe, finished_steps: int) -> LambdaLR:
    """Linear warm-up, then poly, (1 - step / steps) ** power (Chen et al., arXiv:1606.00915,
    section 4.1), or half a cosine (Loshchilov and Hutter, arXiv:1608.03983).
    """
    length = recipe.schedule_steps or recipe.steps

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
        done = min(step, length) / length
        if recipe.schedule == "cosine":
            return warmup * (1 + math.cos(math.pi * done)) / 2
        return float(warmup * (1 - done) ** recipe.poly_power)

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=finished_steps - 1)
