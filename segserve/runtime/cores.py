"""The number of CPU cores that this process may use."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


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
