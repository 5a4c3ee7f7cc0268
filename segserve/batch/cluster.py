"""Starts a private Ray instance that leaves no files, or joins a Ray cluster."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import mkdtemp
from types import ModuleType

from ..segment.errors import SegmentError

_STORE_BYTES = 256 * 2**20
"""The object store's size without the archive. Blocks are small: only names and counts."""

_REACHABLE_WITHIN_S = 10


@dataclass(frozen=True)
class Machines:
    """The number of a job's workers, and the cores and GPUs of each."""

    workers: int
    cpus_each: float
    gpus_each: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_each else "cpu"

    @property
    def threads(self) -> int:
        """The number of threads per worker for reading, decoding and writing, in addition to the
        network's.
        """
        return max(2, int(self.cpus_each) if self.gpus_each else 2)


@contextmanager
def joined_ray(
    address: str | None, *, cpus: int | None, archive_bytes: int
) -> Iterator[ModuleType]:
    """Connects to Ray and yields its module.

    Without an address, a private Ray instance is started and ends with this context. It has no
    dashboard, sends no usage statistics, and keeps its files in its own folder. A Ray instance that
    already runs on this machine is not used.

    Raises:
        SegmentError: Ray is not installed, does not start, or is not at the address.
    """
    ray = _imported()
    if ray.is_initialized():  # the caller's own session in this process
        yield ray
        return
    if address:
        _check_reachable(address)
    folder = None if address else mkdtemp(prefix="segserve-")
    try:
        _connect(ray, address, folder, cpus, archive_bytes)
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def machines_of(ray: ModuleType, workers: int | None) -> Machines:
    """The resources of the workers. Without `workers`, there is one worker per GPU or, without
    GPUs, one per core.
    """
    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if gpus:
        count = workers or max(1, int(gpus))
        return Machines(count, max(1.0, cpus // count), min(1.0, gpus / count))
    count = workers or max(1, int(cpus))
    return Machines(count, min(1.0, cpus / count), 0.0)


def _imported() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SegmentError(
            "batch jobs run on Ray, which is not installed: pip install 'segserve[ray]'"
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


def _check_reachable(address: str) -> None:
    """Checks the address quickly. Ray itself would wait for minutes if there is no server."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # for example `auto`, which Ray resolves
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACHABLE_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise SegmentError(
            f"{address}: cannot be joined: {error}; is a Ray head node running there?"
        ) from error


def _connect(
    ray: ModuleType, address: str | None, folder: str | None, cpus: int | None, archive_bytes: int
) -> None:
    common = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.CRITICAL}
    own = {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES + 2 * archive_bytes,
        "_temp_dir": folder,
    }
    try:
        ray.init(address=address or "local", **common, **({} if address else own))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SegmentError(
            f"{address or 'a Ray of our own'}: cannot be joined: {reason}"
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
