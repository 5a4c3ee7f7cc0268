"""`model-config.yaml`: what whoever runs the server may set, without touching the model.

A setting is resolved in one order: options of the request, then this file, then the model's record.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .errors import ModelError
from .options import Options
from .record import ModelRecord, ResizeRule, Strict, validated

CONFIG_FILE = "model-config.yaml"


class Settings(Strict):
    """The `handler:` section.

    Attributes:
        precision: `auto` computes in bf16 where the processor or the GPU has it and in fp32 elsewhere; `int8` on a CPU
            with VNNI, for a model whose record names ranges, and as `auto` elsewhere.
        fuse: norms and activations are computed inside of the convolutions, on a CPU by oneDNN; `false` computes the
            network module by module, which is slower.
        threads: CPU threads of one worker; by default the machine's cores shared among the workers.
        max_image_pixels: an image of more pixels is refused before it is decoded.
        max_response_bytes: an answer of more bytes is refused. Never above TorchServe's `max_response_size`, which
            kills the worker; the default is TorchServe's own.
        resize: in place of the record's rule.
        max_cost: in place of the record's.
        defaults: options that hold where a request does not say otherwise.
    """

    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"
    fuse: bool = True
    threads: PositiveInt | None = None
    max_image_pixels: PositiveInt = 2**24
    max_response_bytes: PositiveInt = 6_553_500
    resize: ResizeRule | None = None
    max_cost: PositiveInt | None = None
    defaults: Options = Options()


def check_precision(settings: Settings, record: ModelRecord) -> None:
    """That the model can compute as the settings want it.

    Raises:
        ModelError: in 8 bits, and nobody has measured the ranges of its activations.
    """
    if settings.precision == "int8" and record.int8 is None:
        raise ModelError(f"precision int8: {record.name} has no ranges: `segserve quantize MODEL IMAGES` measures them")


class ModelConfig(Strict):
    """The whole file. Its other keys are TorchServe's, which ignores those that it does not know: here a key is
    either one of TorchServe's that are safe to set or an error.
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
            raise ValueError(f"minWorkers is {self.minWorkers}, above maxWorkers, which is {self.maxWorkers}")
        return self


def read_config(content: object) -> ModelConfig:
    """The checked content of a `model-config.yaml`; everything at its default where there is none.

    Raises:
        ModelError: an unknown key or a value out of bounds, named in one line.
    """
    return validated({} if content is None else content, ModelConfig, CONFIG_FILE)
