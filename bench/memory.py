"""What a server's Python processes took of the machine's memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def peak_python_bytes(pid: int) -> int:
    """The largest resident set that any Python process of a tree has had so far (Linux's VmHWM), in bytes.

    A server's front end in Java does not count: beside the network it is small.
    """
    return max(python_peaks_bytes(pid).values(), default=0)


def python_peaks_bytes(pid: int) -> dict[int, int]:
    """The same of every Python process of the tree, by its pid."""
    peaks = {}
    for process in _python_processes(pid):
        with suppress(psutil.NoSuchProcess, OSError):
            peaks[process.pid] = _peak_bytes(process.pid)
    return peaks


def forget_peaks(pid: int) -> None:
    """From now on the peaks of a tree's Python processes are counted anew, from what they have."""
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
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
    return int(kilobytes) * 1024
