"""Measures the memory of a server's Python processes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def peak_python_bytes(pid: int) -> int:
    """The largest peak resident set (Linux's VmHWM) of any single Python process in a process tree,
    in bytes.

    A server's Java frontend is excluded, because it is small compared to the network.
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


def _python_processes(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                if process.name() != "java":
                    yield process


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(
        (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0"
    )
    return int(kilobytes) * 1024
