"""The CPU cores that this process may use, and how its threads wait for each other."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

THREAD_SETTINGS: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive"}
"""Environment for processes that compute, to set before they import torch.

OpenMP's threads wait for each other many times per image. By default they spin: while another
process has the core of one thread, the others waste theirs (`python -m bench.neighbour`).
"""


def available_cores(cgroup: Path = _CGROUP) -> int:
    """The cores that the scheduler may use. A container's CPU quota, rounded up, limits the number
    further.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _quota_v2(cgroup) or _quota_v1(cgroup)
    return min(cores, math.ceil(quota)) if quota else cores


def _quota_v2(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # the file is missing, or holds "max"
        return None


def _quota_v1(cgroup: Path) -> float | None:
    try:
        quota, period = (
            int((cgroup / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
