"""The architecture of a network, a section of the model's record."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..schema import Strict


def _usual_dropout(fields: dict[str, Any]) -> float:
    """The default of torchvision for the head deeplabv3, and of CoreNet for the other two."""
    return 0.5 if fields.get("head") == "deeplabv3" else 0.1


class Architecture(Strict):
    """Which network the weights belong to: a backbone and a head of `deeplabv3.py`.

    The keys from `aspp_rates` on are CoreNet's, with its defaults.

    Attributes:
        backbone: a timm model, or `torchvision.resnet18`, 34, 50, 101 or 152, or
            `torchvision.mobilenet_v3_large` for torchvision's own.
        aux_head: an FCN head on the level before the last, as published checkpoints have it. It is
            never computed.
        padding: of a timm backbone. `centered` pads the strided convolutions so that a logit lies
            at the center of its cell, where the bilinear resize to the image's size expects it;
            `same` pads as TensorFlow does; `default` leaves them as timm has them.
        dilation: of torchvision's ResNets. `uniform` dilates every convolution of a stage whose
            stride is lowered, as segmentation_models_pytorch does; `default` begins with the second
            block, as torchvision does.
        use_l5_exp: the last level is the wider output of the 1x1 convolution that a mobilenet ends
            with.
        aspp_in_channels: of the fused levels; of the multi-scale head alone.
        output_upsample_factor: the multi-scale head's logits are upsampled by so much; of that head
            alone.
    """

    # No `hf-hub:` or `local-dir:`, which timm would load.
    backbone: Annotated[str, Field(pattern=r"^\w+(\.\w+)?$")]
    output_stride: Literal[8, 16, 32] = 16
    padding: Literal["default", "centered", "same"] = "default"
    dilation: Literal["default", "uniform"] = "default"
    head: Literal["deeplabv3", "corenet", "multiscale", "deeplabv3plus"] = "deeplabv3"
    aux_head: bool = False
    aspp_rates: tuple[PositiveInt, ...] = (6, 12, 18)
    aspp_out_channels: PositiveInt = 256
    aspp_sep_conv: bool = False
    aspp_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default_factory=_usual_dropout)
    use_l5_exp: bool = False
    aspp_in_channels: PositiveInt = 512
    output_upsample_factor: Literal[1, 2, 4, 8] = 1

    @model_validator(mode="after")
    def _options_belong_to_the_head(self) -> Self:
        for option in ("aspp_in_channels", "output_upsample_factor"):
            value, default = getattr(self, option), type(self).model_fields[option].default
            if self.head != "multiscale" and value != default:
                raise ValueError(
                    f"{option} is {value}, but only the head multiscale has it, not {self.head}"
                )
        if self.aux_head and self.head == "deeplabv3plus":
            raise ValueError("the head deeplabv3plus has no auxiliary head: leave out aux_head")
        return self

    @property
    def logits_stride(self) -> int:
        """Pixels of the network's input per logit, along each side."""
        if self.head == "multiscale":
            return 8 // self.output_upsample_factor
        return 4 if self.head == "deeplabv3plus" else self.output_stride
