"""The machine of a measurement: its hardware and versions, and the memory of Python processes."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from segserve.runtime.inference.segmenter import has_bf16

PACKAGES = (
    *("torch", "torchvision", "torchserve", "litserve", "fastapi", "uvicorn", "transformers"),
    *("timm", "pillow", "numpy"),
)


def facts() -> Mapping[str, str]:
    """The facts by name, in the order for the report."""
    has_gpu = torch.cuda.is_available()
    bf16 = has_bf16(torch.device("cuda" if has_gpu else "cpu"))
    precision = "with bf16" if bf16 else "without bf16"
    cores = len(os.sched_getaffinity(0))
    computing = f"{cores} cores, {torch.get_num_threads()} threads, {precision}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {computing}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "GPU": torch.cuda.get_device_name(0) if has_gpu else "none",
        "load before": f"{os.getloadavg()[0]:.1f} of {cores} cores",
        "versions": ", ".join(_versions()),
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "a processor"


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # its system is skipped
            found.append(f"{package} {version(package)}")
    return found


def peak_python_bytes(pid: int) -> int:
    """The largest peak resident set (Linux's VmHWM) of any single Python process in a tree, without
    a server's Java frontend, which is small.
    """
    return max(python_peaks_bytes(pid).values(), default=0)


def python_peaks_bytes(pid: int) -> dict[int, int]:
    """The peak resident set of every Python process in the tree, by pid, in bytes."""
    peaks = {}
    for process in _python_processes(pid):
        with suppress(psutil.NoSuchProcess, OSError):
            peaks[process.pid] = _peak_bytes(process.pid)
    return peaks


def forget_peaks(pid: int) -> None:
    """Resets the peaks of a tree's Python processes to their current resident sets."""
    for process in _python_processes(pid):
        with suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants. Raises psutil.NoSuchProcess if it has ended."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _python_processes(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        for process in process_tree(pid):
            with suppress(psutil.NoSuchProcess):
                if process.name() != "java":
                    yield process


def _peak_bytes(pid: int) -> int:
    found = re.search(r"^VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
