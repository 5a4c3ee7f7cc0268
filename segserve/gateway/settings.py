"""The environment variables of the container, and the checks of what they name and of memory."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
)

from ..engines import EngineName, ServerError
from ..engines.config import max_request_bytes, read_config, store_urls
from ..engines.processes import EXTRA_VARIABLE

PREFIX = "SEGSERVE_"
MIN_MEMORY_BYTES = 3 * 2**29
"""1.5 GiB: 0.9 GiB for the worker at its peak, the rest for Java, this process and a reserve."""

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)  # v2, v1
_GPU_CHECK = [sys.executable, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"]
_TOKEN_LIFE_MIN = 10 * 365 * 24 * 60  # TorchServe's own tokens never leave the machine
_FOREIGN = frozenset(
    {"SEGSERVE_HOME", "SEGSERVE_MIRROR", "SEGSERVE_BROWSER", "SEGSERVE_URL", EXTRA_VARIABLE}
)  # other commands' own
_Port = Annotated[int, Field(ge=1, le=65535)]
_PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]  # RFC 9110, 5.6.2


class GatewaySettings(BaseModel):
    """Each field is a variable of docs/operations.md: `SEGSERVE_` and its name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: tuple[Path, ...] = (Path("/opt/segserve/model.mar"),)
    engine: EngineName = EngineName.TORCHSERVE
    models_dir: Path = Path("/models")
    host: str = "0.0.0.0"  # noqa: S104 - a container is reached from outside
    port: _Port = 8080
    grpc_port: _Port | None = None
    metrics_port: _Port = 8082
    management_port: _Port = 8081
    token_file: Path | None = None
    management_token_file: Path | None = None
    trust: Path | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    config: Path | None = None
    run_dir: Path = Path("/tmp/segserve")  # noqa: S108 - no other user writes in the container
    request_timeout_s: _PositiveSeconds = 120
    client_in_flight: PositiveInt = 8
    client_waiting: NonNegativeInt = 100
    client_header: _HeaderName | None = None
    start_timeout_s: _PositiveSeconds = 120
    drain_delay_s: _Seconds = 0
    drain_timeout_s: _Seconds = 60

    @field_validator("archive", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads the settings from an environment. An empty variable counts as unset.

        Raises:
            ServerError: a variable is unknown or has an invalid value.
        """
        given = {
            name: value.strip()
            for name, value in environment.items()
            if name.startswith(PREFIX) and name not in _FOREIGN and value.strip()
        }
        known = variables()
        if unknown := sorted(given.keys() - {*known}):
            raise ServerError(f"there is no variable {unknown[0]}; there are {', '.join(known)}")
        fields = {name.removeprefix(PREFIX).lower(): value for name, value in given.items()}
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            [detail, *_] = error.errors()
            name = PREFIX + str(detail["loc"][0]).upper()
            raise ServerError(
                f"{name} is {given[name]!r}, which is not valid: {detail['msg']}"
            ) from None

    @property
    def grpc_address(self) -> str:
        """HOST:PORT of gRPC, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.grpc_port}"

    def max_request_bytes(self) -> int:
        """The limit of a request's size, which is TorchServe's own."""
        return max_request_bytes(self.server_config())

    def torchserve_settings(self) -> dict[str, str]:
        """The settings of TorchServe that differ from config.properties."""
        own = {
            # Only the gateway is reached from outside. Ports in use are replaced by free ones.
            "inference_address": "http://127.0.0.1:8080",
            "management_address": "http://127.0.0.1:8081",
            "metrics_address": "http://127.0.0.1:8082",
            "token_expiration_min": str(_TOKEN_LIFE_MIN),
            "allowed_urls": store_urls(self.models_dir),
            "enable_model_api": "true" if self.management_token_file else "false",
        }
        return own | ({"number_of_gpu": "0"} if self.device == "cpu" else {})

    def server_config(self) -> dict[str, str]:
        return read_config(self.config)


def variables() -> tuple[str, ...]:
    """The names of all variables, in the order of the documentation."""
    return tuple(PREFIX + name.upper() for name in GatewaySettings.model_fields)


def check_settings(settings: GatewaySettings) -> None:
    """Raises ServerError: the run folder or the GPU cannot be used.

    If the device is the CPU, the later children of this process see no GPU.
    """
    check_run_dir(settings.run_dir)
    if settings.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # In a separate process, so that this one stays small.
    if settings.device == "gpu" and subprocess.run(_GPU_CHECK, timeout=60, check=False).returncode:
        raise ServerError(
            "SEGSERVE_DEVICE is gpu, and PyTorch finds no GPU; run a CUDA image with docker run "
            "--gpus all (the host needs NVIDIA's container toolkit), or set SEGSERVE_DEVICE=auto"
        )


def check_memory(limits: tuple[Path, ...] = _CGROUP_LIMITS) -> None:
    """Raises ServerError: the container's memory limit is lower than the server needs."""
    limit = next((value for path in limits if (value := _read_bytes(path)) is not None), None)
    if limit is not None and limit < MIN_MEMORY_BYTES:
        raise ServerError(
            f"the container's memory is limited to {limit / 2**20:.0f} MiB, and the server needs "
            f"{MIN_MEMORY_BYTES / 2**20:.0f} MiB at least; raise the limit, or it is killed when "
            "it loads the model"
        )


def _read_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such cgroup, or "max"
        return None


def check_run_dir(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=run_dir).close()
    except OSError as error:
        raise ServerError(
            f"SEGSERVE_RUN_DIR: cannot write into {run_dir}: {error.strerror}; give the container "
            "a folder to write into, as in docker run --tmpfs /tmp"
        ) from error
    if run_dir.stat().st_uid not in (0, os.getuid()):
        raise ServerError(
            f"SEGSERVE_RUN_DIR: {run_dir} belongs to another user, who could put other archives "
            "and tokens there; set it to a folder of your own"
        )
