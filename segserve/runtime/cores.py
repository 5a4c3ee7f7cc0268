"""The CPU cores that this process may use, and how its threads wait for each other."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

SPIN_VARIABLE, _SPIN_COUNT = "GOMP_SPINCOUNT", "2000"


def bounded_spinning(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable to add to the environment of a process that computes, before it imports torch;
    none if the environment says itself how threads wait.

    OpenMP's threads wait for each other many times per image. By default they spin for long: while
    another process has the core of one thread, the others waste theirs. Threads that sleep at once
    lose as much when the machine is quiet. `python -m bench.neighbour` compares them.
    """
    is_set = "OMP_WAIT_POLICY" in environment or SPIN_VARIABLE in environment
    return {} if is_set else {SPIN_VARIABLE: _SPIN_COUNT}


def available_cores(cgroup: Path = _CGROUP) -> int:
    """The cores that the scheduler may use, at most the container's CPU quota, rounded up."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
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
