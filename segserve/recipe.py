"""The recipe of a training run, `recipe.yaml` in the model folder.

Record, recipe and data decide the trained weights. This module is not in `segserve.training`: the
command line makes flags of a recipe, and must start without that package.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, PositiveInt

from .runtime.files import write_whole
from .runtime.record import Strict, read_document, read_yaml, validated

RECIPE_FILE = "recipe.yaml"

Share = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Strict):
    """How a network is trained on random crops. Learning rates are those at the schedule's start.

    Attributes:
        start: `backbone` for a new head on the weights of `backbone_weights`, `model` for the
            weights in the model folder, or another model, by its name or folder: all its weights
            but those of a classifier with other classes.
        image_px: longer side of an image before it is scaled by a random factor from `scales`.
        crop_px: side of the square crops.
        color_jitter: brightness, contrast and saturation change by random factors between 1 - and
            1 + this value.
        backbone_weights: `timm` or `torchvision` for a download by that package, the path of a file
            with the backbone's tensors, or `none` for random weights.
        batch_norm_momentum: weight of a new batch in the running statistics. 0 freezes the
            statistics, so that norms compute the same in training and in inference.
        optimizer: SGD with Nesterov momentum, or AdamW, which needs about a hundredth of the
            learning rates of SGD.
        schedule: the poly schedule of the DeepLab papers, or half a cosine; both end at 0.
        schedule_steps: length of the schedule, by default `steps`. A longer schedule leaves the
            rest to a second stage.
        loss_stride: 4 computes the loss at every 4th pixel of every 4th row.
        start_share: share of the starting weights in the result (Wortsman et al.,
            arXiv:2109.01903). Needs `start: model`.
        ema_decay: decay of the moving average of the weights, which is the result. 0 for the
            weights of the last step.
    """

    steps: PositiveInt
    start: str = "backbone"
    batch_size: PositiveInt = 16
    image_px: PositiveInt = 400
    crop_px: PositiveInt = 288
    scales: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    color_jitter: Share = 0.0
    backbone_weights: str = "none"
    backbone_lr: PositiveFloat = 0.02
    head_lr: PositiveFloat = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["poly", "cosine"] = "poly"
    schedule_steps: PositiveInt | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    batch_norm_momentum: Annotated[float, Field(ge=0, le=1)] = 0.01
    loss_stride: PositiveInt = 1
    start_share: Share = 0.0
    ema_decay: Share = 0.0
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Annotated[int, Field(ge=0)] = 0

    def at_size(self, size_px: int, given: Mapping[str, object]) -> Self:
        """The recipe with crops of the network's input size, unless their sizes are given."""
        names = [name for name in ("image_px", "crop_px") if given.get(name) is None]
        return self.model_copy(update=dict.fromkeys(names, size_px))

    @property
    def starts_from_other(self) -> bool:
        """Whether the run starts from the weights of another model."""
        return self.start not in ("backbone", "model")


FINE_TUNING: Mapping[str, object] = {
    "steps": 300,
    "batch_size": 8,
    "backbone_lr": 0.00003,
    "head_lr": 0.0003,
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup_steps": 20,
    "batch_norm_momentum": 0,
    "loss_stride": 4,
    "ema_decay": 0.98,
}
"""The defaults of a new recipe that starts from another model: gentle, and short."""


def recipe_with(path: Path, changes: Mapping[str, object]) -> Recipe:
    """The recipe of a file, if it exists, with the changes applied. Nothing is written.

    Raises:
        ModelError: a key is unknown, a value breaks a rule, or the number of steps is missing.
    """
    content = read_yaml(path) if path.exists() else {}
    if not path.exists() and changes.get("start", "backbone") not in ("backbone", "model"):
        content = dict(FINE_TUNING)
    if isinstance(content, dict):
        content = {**content, **changes}
    return validated(content, Recipe, path.name)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the recipe, unless the file already holds the same one."""
    if not path.exists() or read_document(path, Recipe) != recipe:
        write_whole(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
