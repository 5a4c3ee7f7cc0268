"""The record of a model, `model.yaml`: the only place for its architecture, weights, classes,
colours, input rule, licence and measured accuracy.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from ..schema import Byte as Byte
from ..schema import Strict as Strict
from ..schema import Unit as Unit
from .errors import ModelError
from .files import write_whole

RECORD_FILE = "model.yaml"
WEIGHTS_FILE = "weights.safetensors"
NETWORK_FILE = "network.onnx"
"""The network as ONNX, beside the weights, which it refers to. Input: uint8 (N, h, w, 3), RGB;
output: logits, float32 (N, classes, h / stride, w / stride)."""
_ROUNDINGS: dict[str, Callable[[Fraction], int]] = {"nearest": round, "down": floor, "up": ceil}
# Class id of a pixel whose class is not requested or not certain enough. Has no colour in overlays.
BACKGROUND = 0

PositiveUnit = Annotated[float, Field(gt=0, le=1)]
# No control characters and no line breaks, including Unicode's: these texts are cells of a table.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]

Document = TypeVar("Document", bound=Strict)


class ResizeRule(Strict):
    """The size at which the network sees an image: one side is brought to `size_px`, the other
    keeps the aspect ratio, and both are rounded to `multiple_of`. The longer side never passes
    `max_px`.

    Attributes:
        rounding: `down` as torchvision's transforms do it; `up` keeps the most of thin images.
    """

    side: Literal["longer", "shorter"] = "longer"
    size_px: PositiveInt
    multiple_of: PositiveInt = 1
    max_px: PositiveInt = 2048
    rounding: Literal["nearest", "down", "up"] = "nearest"

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_px < self.multiple_of:
            raise ValueError(
                f"max_px is {self.max_px}, below multiple_of, which is {self.multiple_of}"
            )
        return self

    def size_for(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Image size -> the (height, width) of the network's input, each at least 1."""
        longer, shorter = max(height_px, width_px), min(height_px, width_px)
        scale = Fraction(self.size_px, longer if self.side == "longer" else shorter)
        scale = min(scale, Fraction(self.max_px, longer))
        return self._rounded(height_px * scale), self._rounded(width_px * scale)

    def _rounded(self, length_px: Fraction) -> int:
        multiples = length_px / self.multiple_of
        whole = _ROUNDINGS[self.rounding](multiples)
        return max(1, min(whole, self.max_px // self.multiple_of)) * self.multiple_of


class InputRule(Strict):
    """How pixels become the network's input: RGB in 0..1, minus `mean`, divided by `std`."""

    resize: ResizeRule
    mean: tuple[Unit, Unit, Unit]
    std: tuple[PositiveUnit, PositiveUnit, PositiveUnit]


class InferenceRule(Strict):
    """The limit of what one request may cost, in forward passes of the whole image, see `Plan`.

    The default allows `tta=multiscale`, which takes 17 to 26 passes, and keeps a network that needs
    4 s a pass within the response timeout of 120 s.
    """

    max_cost: PositiveInt = 30


class ClassInfo(Strict):
    # One line, see Line.
    label: Annotated[str, Field(pattern=r"^\S([^\x00-\x1f\x7f-\x9f\u2028\u2029]*\S)?$")]
    color: tuple[Byte, Byte, Byte]


def voc_color(class_id: int) -> tuple[int, int, int]:
    """The colour of a class in the palette of PASCAL VOC.

    Every three bits of the id, from the lowest on, are the next lower bits of red, green and blue.
    Source: VOClabelcolormap.m of the development kit of PASCAL VOC 2012.
    """
    color = [0, 0, 0]
    for bit in range(24):
        shift, channel = divmod(bit, 3)
        color[channel] |= (class_id >> bit & 1) << (7 - shift)
    red, green, blue = color
    return red, green, blue


class Architecture(Strict):
    """Which network the weights belong to: a backbone and a head of `deeplabv3.py`.

    Attributes:
        backbone: a timm model, or `torchvision.resnet18`, 34, 50, 101 or 152, or
            `torchvision.mobilenet_v3_large` for torchvision's own.
        padding: of a timm backbone. `centered` pads the strided convolutions so that a logit lies
            at the center of its cell, where the bilinear resize to the image's size expects it;
            `same` pads as TensorFlow does; `default` leaves them as timm has them.
        dilation: of torchvision's ResNets. `uniform` dilates every convolution of a stage whose
            stride is lowered, as segmentation_models_pytorch does; `default` begins with the second
            block, as torchvision does.
        aux_head: an FCN head, which published checkpoints have. It is never computed.
        use_l5_exp: the last level is the wider output of the 1x1 convolution that a mobilenet ends
            with.
        aspp_in_channels: of the fused levels; of the multi-scale head alone.
        output_upsample_factor: of the multi-scale head's logits; of that head alone.
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
    # The default of torchvision for the head deeplabv3, and of CoreNet for the others.
    aspp_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default_factory=lambda fields: 0.5 if fields.get("head") == "deeplabv3" else 0.1
    )
    use_l5_exp: bool = False
    aspp_in_channels: PositiveInt = 512
    output_upsample_factor: Literal[1, 2, 4, 8] = 1

    @model_validator(mode="after")
    def _options_belong_to_the_head(self) -> Self:
        for option in ("aspp_in_channels", "output_upsample_factor"):
            is_changed = getattr(self, option) != type(self).model_fields[option].default
            if is_changed and self.head != "multiscale":
                raise ValueError(f"only the head multiscale has {option}, not {self.head}")
        if self.aux_head and self.head == "deeplabv3plus":
            raise ValueError("the head deeplabv3plus has no auxiliary head: leave out aux_head")
        return self

    @property
    def logits_stride(self) -> int:
        """Pixels of the network's input per logit, along each side."""
        if self.head == "multiscale":
            return 8 // self.output_upsample_factor
        return 4 if self.head == "deeplabv3plus" else self.output_stride


class Weights(Strict):
    """A safetensors file beside the record, and the SHA-256 it must have."""

    file: Annotated[str, Field(pattern=r"^[\w.-]+\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Checkpoint(Strict):
    """A published checkpoint that `segserve fetch` makes the weights from.

    Attributes:
        base_url: where its publisher keeps it; the environment variable SEGSERVE_MIRROR names
            another place.
        size_mib: as published, so rounded: 2**20 bytes.
    """

    file: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    base_url: Annotated[str, Field(pattern=r"^https://[^\s]+/$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_mib: Annotated[float, Field(gt=0)]


class CoveredMean(Strict):
    """Mean IoU over the `classes` that at least `min_images` images hold."""

    min_images: PositiveInt
    classes: PositiveInt
    mean_iou: Unit


class Accuracy(Strict):
    """Intersection over union in 0..1, for classes present in the data: as `segserve evaluate`
    measured it, or as the weights' publisher gives it, who may leave out `images` and `class_iou`.
    """

    dataset: Line
    images: PositiveInt | None = None
    mean_iou: Unit
    covered: CoveredMean | None = None
    frequency_weighted_iou: Unit | None = None
    mean_boundary_iou: Unit | None = None
    pixel_accuracy: Unit
    mean_accuracy: Unit | None = None
    class_iou: dict[str, Unit] = Field(default={})
    class_boundary_iou: dict[str, Unit] | None = None


class Calibration(Strict):
    """What makes confidences mean what they say, as `segserve calibrate` measured it.

    Attributes:
        temperature: probabilities are the softmax of the logits divided by this.
        dataset: half of its images gave the temperature, the other half the errors.
        ece_before: expected calibration error at temperature 1, in 0..1 (Naeini et al., AAAI 2015;
            15 bins).
        ece: the same at this temperature.
    """

    temperature: PositiveFloat
    dataset: Line
    images: PositiveInt
    ece_before: Unit
    ece: Unit


class ModelRecord(Strict):
    """One model.

    `weights` is missing only if the model is not trained, or not made from `checkpoint` yet. `int8`
    names the ranges that `segserve quantize` measured, with which a CPU with VNNI computes in int8.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+(\.\d+)?$")]
    summary: Line
    licence: Line
    source: Line
    architecture: Architecture
    input: InputRule
    inference: InferenceRule | None = None
    checkpoint: Checkpoint | None = None
    weights: Weights | None = None
    int8: Weights | None = None
    accuracy: Accuracy | None = None
    calibration: Calibration | None = None
    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=2, max_length=255)]

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> Self:
        for label in self.labels:
            if self.labels.count(label) > 1:
                raise ValueError(f"classes: label {label} stands more than once")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(info.label for info in self.classes)

    @property
    def max_cost(self) -> int:
        """The number of forward passes that one request may take, see `InferenceRule`."""
        return (self.inference or InferenceRule()).max_cost

    @property
    def temperature(self) -> float:
        """Divides logits before the softmax, see `Calibration`."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def palette(self) -> bytes:
        """Colours by class id, three bytes (R, G, B) each."""
        return bytes(value for info in self.classes for value in info.color)


def read_record(folder: Path) -> ModelRecord:
    """Reads and validates `folder/model.yaml`. Raises as `read_document`."""
    return read_document(folder / RECORD_FILE, ModelRecord)


def read_document(path: Path, kind: type[Document]) -> Document:
    """Reads a YAML file into a validated document.

    Raises:
        ModelError: the file is missing, is not YAML, or breaks a rule; the message lists all broken
            rules in one line.
    """
    return validated(read_yaml(path), kind, path.name)


def read_yaml(path: Path) -> object:
    """The content of a YAML file. Raises ModelError if it is missing or is not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: bad date
        raise ModelError(f"{path.name}: cannot be read: {' '.join(str(error).split())}") from error


def validated(content: object, kind: type[Document], name: str) -> Document:
    """Validates `content`. Raises ModelError with all broken rules in one line."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        rules = "; ".join(_rule(detail["loc"], detail["msg"]) for detail in error.errors())
        raise ModelError(f"{name}: {' '.join(rules.split())}") from error


def _rule(location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, location))
    message = {"Extra inputs are not permitted": "unknown key", "Field required": "is missing"}.get(
        message, message
    )
    return f"{key}: {message}" if key else message


def write_record(record: ModelRecord, folder: Path) -> None:
    """Writes the fields that were set to `folder/model.yaml`, with lists of numbers on one line."""
    content = record.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    text = yaml.dump(content, Dumper=_RecordDumper, sort_keys=False, width=110, allow_unicode=True)
    write_whole(folder / RECORD_FILE, text)


class _RecordDumper(yaml.SafeDumper):
    """Writes lists of numbers on one line."""

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        plain = all(isinstance(item, int | float) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


def named_weights(record: ModelRecord) -> Weights:
    """The weights that the record names. Raises ModelError if it names none."""
    if record.weights is None:
        remedy = "`segserve fetch` the model" if record.checkpoint else "train the model"
        raise ModelError(f"{record.name}: the record names no weights: {remedy} first")
    return record.weights


def verified_file(weights: Weights, folder: Path, what: str) -> Path:
    """The path of a weights file in the model folder.

    Raises ModelError if it is missing or its SHA-256 is not the record's.
    """
    path = folder / weights.file
    if not path.is_file():
        raise ModelError(f"{weights.file}: the {what} are missing")
    digest = sha256_of(path)
    if digest != weights.sha256:
        raise ModelError(f"{weights.file}: SHA-256 is {digest}, the record says {weights.sha256}")
    return path


def write_verified(content: bytes, path: Path) -> Weights:
    """Writes a weights file atomically. Returns the entry for the record, see `verified_file`."""
    write_whole(path, content)
    return Weights(file=path.name, sha256=hashlib.sha256(content).hexdigest())


def safetensors_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and what its header says of each.

    Raises ValueError if the header is not JSON.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    return 8 + size, header


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
