"""Checks the settings, the memory and the GPUs of the machine before anything is started."""

import os
import subprocess
import sys
from pathlib import Path
from socket import AF_INET, AF_INET6, socket

from ..engines.errors import ServerError
from .settings import GatewaySettings

MIN_MEMORY_BYTES = 3 * 2**29
"""1.5 GiB: 0.9 GiB for the worker at its peak, the rest for Java, this process and a reserve."""

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)  # v2, v1
_GPU_CHECK = "import torch, sys; sys.exit(not torch.cuda.is_available())"
_GPU_CHECK_TIMEOUT_S = 60


def check_settings(settings: GatewaySettings) -> None:
    """Checks what the settings name.

    Raises:
        ServerError: an archive, a folder, the address or the GPU is missing or cannot be used.
    """
    for archive in settings.archive:
        if not archive.is_file():
            raise ServerError(
                f"SEGSERVE_ARCHIVE: there is no archive {archive}; mount the folder that holds it, "
                f"as in docker run --volume FOLDER:{archive.parent}:ro"
            )
    if "models_dir" in settings.model_fields_set and not settings.models_dir.is_dir():
        raise ServerError(
            f"SEGSERVE_MODELS_DIR: there is no folder {settings.models_dir}; mount it, as in "
            f"docker run --volume FOLDER:{settings.models_dir}:ro"
        )
    check_run_dir(settings.run_dir)
    _check_host(settings.host)
    if settings.device == "gpu":
        _check_gpu()


def check_memory(limits: tuple[Path, ...] = _CGROUP_LIMITS) -> None:
    """Raises ServerError: the container's memory limit is lower than the server needs."""
    limit = next((value for path in limits if (value := _read_bytes(path)) is not None), None)
    if limit is not None and limit < MIN_MEMORY_BYTES:
        raise ServerError(
            f"the container's memory is limited to {limit / 2**20:.0f} MiB, and the server needs "
            f"{MIN_MEMORY_BYTES / 2**20:.0f} MiB at least; raise the limit, or it is killed when "
            "it loads the model"
        )


def _check_gpu() -> None:
    # In a separate process, so that this one stays small.
    done = subprocess.run(
        [sys.executable, "-c", _GPU_CHECK], timeout=_GPU_CHECK_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise ServerError(
            "SEGSERVE_DEVICE is gpu, and PyTorch finds no GPU; run a CUDA image with docker run "
            "--gpus all (the host needs NVIDIA's container toolkit), or set SEGSERVE_DEVICE=auto"
        )


def _read_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such cgroup, or "max"
        return None


def check_run_dir(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / ".writable").touch()
        (run_dir / ".writable").unlink()
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


def _check_host(host: str) -> None:
    try:
        with socket(AF_INET6 if ":" in host else AF_INET) as any_port:
            any_port.bind((host, 0))
    except OSError as error:
        raise ServerError(
            f"SEGSERVE_HOST: cannot listen on {host}: {error.strerror}; set it to an address of "
            "this machine, or to 0.0.0.0 for all of them"
        ) from error
