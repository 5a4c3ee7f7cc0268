"""SGD with its own learning rate for backbone and head, and the poly schedule of the DeepLab papers."""

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from ..runtime.network import SegmentationNetwork
from .recipe import Recipe


def build_optimizer(network: SegmentationNetwork, recipe: Recipe) -> SGD:
    """Weight decay is kept from biases and batch norms, which have one dimension."""
    groups = [
        {"params": _parameters(part, decayed), "lr": lr, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for part, lr in ((network.backbone, recipe.backbone_lr), (network.head, recipe.head_lr))
        for decayed in (True, False)
    ]
    return SGD(groups, momentum=recipe.momentum, nesterov=True)


def _parameters(module: nn.Module, decayed: bool) -> list[torch.Tensor]:
    return [parameter for parameter in module.parameters() if (parameter.ndim > 1) == decayed]


def build_schedule(optimizer: SGD, recipe: Recipe, finished_steps: int) -> LambdaLR:
    """Linear warm-up, then (1 - step / steps) ** power (Chen et al., arXiv:1606.00915, section 4.1)."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
        decay: float = (1 - min(step, recipe.steps) / recipe.steps) ** recipe.poly_power
        return warmup * decay

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, factor, last_epoch=finished_steps - 1)
