"""`model-config.yaml`: what the operator of a server may set without changing the model.

The order of precedence is: options of the request, then this file, then the model's record.
"""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from ..schema.request import Options
from .errors import ModelError
from .record import ModelRecord, ResizeRule, Strict, validated

CONFIG_FILE = "model-config.yaml"

MAX_IMAGE_PIXELS = 178_956_970
"""The largest `max_image_pixels`: Pillow opens no larger image."""

Runtime = Literal["auto", "torch", "onnx"]


class PixelLimits(NamedTuple):
    """The largest number of pixels of an image: as its file declares them, and in memory. Above
    the second limit a JPEG is decoded at 1/2, 1/4 or 1/8 of its size; other formats are rejected.
    """

    declared: int
    decoded: int


class Acceleration(Strict):
    """The section `acceleration:` of `handler:`. These switches have not been measured on a GPU, so
    they are off by default.

    Attributes:
        cuda_graphs: replay the network's kernels on a GPU as one CUDA graph for each input shape.
        cuda_streams: give the threads that share a GPU streams of their own, and copy images to the
            GPU from pinned memory.
    """

    cuda_graphs: bool = False
    cuda_streams: bool = False


class Settings(Strict):
    """The `handler:` section.

    Attributes:
        runtime: what computes the network: `torch`, or `onnx`, which needs no PyTorch and computes
            on the CPU. `auto` is `onnx` on a CPU if the model has a network.onnx and OpenVINO is
            installed, or if PyTorch is not installed; otherwise `torch`.
        precision: `auto` computes in int8 on a CPU with VNNI if the record names ranges, else in
            bf16 if the processor or the GPU supports it, else in fp32. `int8` is the same, but
            requires ranges, and logs a warning if it is impossible.
        fuse: compile the network with OpenVINO on a CPU; merge its norms into its convolutions on a
            GPU. `false` computes the network module by module, which is slower.
        acceleration: switches that are off by default, see `Acceleration`.
        threads: CPU threads of one worker; by default the machine's cores divided by the number of
            workers.
        max_image_pixels: an image with more pixels is rejected before it is decoded; at most
            `MAX_IMAGE_PIXELS`.
        max_decoded_pixels: a JPEG with more pixels is decoded at 1/2, 1/4 or 1/8 of its size;
            images of other formats are rejected. It bounds the memory of a request.
        max_response_bytes: a larger response is replaced by an error. Never set it above
            TorchServe's `max_response_size`, because a larger response kills the worker. The
            default is TorchServe's own.
        resize: replaces the record's rule.
        max_cost: replaces the record's limit.
        defaults: options that apply unless a request sets them.
    """

    runtime: Runtime = "auto"
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"
    fuse: bool = True
    acceleration: Acceleration = Acceleration()
    threads: PositiveInt | None = None
    max_image_pixels: Annotated[int, Field(gt=0, le=MAX_IMAGE_PIXELS)] = 2**26
    max_decoded_pixels: PositiveInt = 2**24
    max_response_bytes: PositiveInt = 6_553_500
    resize: ResizeRule | None = None
    max_cost: PositiveInt | None = None
    defaults: Options = Options()

    @property
    def pixel_limits(self) -> PixelLimits:
        """The limits of the decoder; nothing larger than `max_image_pixels` is ever decoded."""
        decoded = min(self.max_decoded_pixels, self.max_image_pixels)
        return PixelLimits(self.max_image_pixels, decoded)


def check_precision(settings: Settings, record: ModelRecord) -> None:
    """Raises a ModelError if the precision is int8 and the model's ranges were not measured."""
    if settings.precision == "int8" and record.int8 is None:
        raise ModelError(
            f"precision int8: {record.name} has no ranges: `segserve quantize MODEL IMAGES` "
            "measures them"
        )


class ModelConfig(Strict):
    """The whole file.

    All other keys are TorchServe's. TorchServe ignores unknown keys. Here, a key is either one of
    TorchServe's keys that are safe to set, or an error.
    """

    minWorkers: PositiveInt = 1  # noqa: N815 - TorchServe's names
    maxWorkers: PositiveInt = 1  # noqa: N815
    batchSize: PositiveInt = 1  # noqa: N815
    maxBatchDelay: PositiveInt = 1  # noqa: N815 - ms; TorchServe takes 0 as 100
    responseTimeout: PositiveInt = 120  # noqa: N815 - s
    startupTimeout: PositiveInt = 120  # noqa: N815 - s
    maxRetryTimeoutInSec: Annotated[int, Field(ge=0)] = 300  # noqa: N815
    jobQueueSize: PositiveInt = 100  # noqa: N815
    deviceType: Literal["cpu", "gpu", "neuron"] | None = None  # noqa: N815
    deviceIds: tuple[int, ...] | None = None  # noqa: N815
    handler: Settings = Settings()

    @model_validator(mode="after")
    def _workers_are_ordered(self) -> Self:
        if self.minWorkers > self.maxWorkers:
            raise ValueError(
                f"minWorkers is {self.minWorkers}, above maxWorkers, which is {self.maxWorkers}"
            )
        return self


def read_config(content: object) -> ModelConfig:
    """Validates the content of a `model-config.yaml`; None gives the defaults.

    Raises:
        ModelError: a key is unknown or a value is out of bounds; the message names it in one line.
    """
    return validated({} if content is None else content, ModelConfig, CONFIG_FILE)
