"""Checks the memory and the GPUs of the container before anything is started."""

import subprocess
import sys
from pathlib import Path

from ..engines.errors import ServerError

LEAST_MEMORY_BYTES = 3 * 2**29
"""1.5 GiB: 0.9 GiB for the worker at its peak, the rest for Java, this process and a reserve."""

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)  # v2, v1
_GPU_CHECK = "import torch, sys; sys.exit(not torch.cuda.is_available())"
_GPU_CHECK_TIMEOUT_S = 60


def check_memory(limits: tuple[Path, ...] = _CGROUP_LIMITS) -> None:
    """Checks the memory limit of the container.

    Raises:
        ServerError: the limit is lower than the server needs.
    """
    limit = next((value for path in limits if (value := _read_bytes(path)) is not None), None)
    if limit is not None and limit < LEAST_MEMORY_BYTES:
        raise ServerError(
            f"the container's memory is limited to {limit / 2**20:.0f} MiB, and the server needs "
            f"{LEAST_MEMORY_BYTES / 2**20:.0f} MiB at least; raise the limit, or it is killed when "
            "it loads the model"
        )


def check_gpu() -> None:
    """Checks that there is a GPU.

    Raises:
        ServerError: PyTorch finds no GPU.
    """
    # In a separate process, so that this one stays small.
    done = subprocess.run(
        [sys.executable, "-c", _GPU_CHECK], timeout=_GPU_CHECK_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise ServerError(
            "SEGSERVE_DEVICE is gpu, and PyTorch sees none; run a CUDA image with docker run "
            "--gpus all "
            "(the host needs NVIDIA's container toolkit), or set SEGSERVE_DEVICE=auto"
        )


def _read_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such cgroup, or "max"
        return None
